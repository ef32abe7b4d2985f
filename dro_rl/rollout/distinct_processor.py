"""A vLLM V1 logits processor that lets a selection be well-formed and distinct only.

A request asks for it with `SamplingParams(extra_args=distinct_arguments(grammar))`; other requests
of the same engine stay free.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from dro_rl.policy.causal_lm import load_tokenizer
from dro_rl.policy.distinct import SelectionGrammar
from dro_rl.prompts import PromptWriter

_KEY = "dro_rl_distinct"


def distinct_arguments(grammar: SelectionGrammar) -> dict[str, Any]:
    """The `extra_args` of a request that is to follow `grammar`."""
    return {_KEY: [grammar.style, grammar.n, grammar.k, list(grammar.excluded)]}


class DistinctProcessor(LogitsProcessor):
    """Masks each constrained request's logits to the tokens that its grammar allows."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self._tokenizer_name = str(vllm_config.model_config.tokenizer)
        self._grammars: dict[tuple[Any, ...], SelectionGrammar] = {}
        self._requests: dict[int, tuple[SelectionGrammar, list[int]]] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the engine's batch: which row is which request.

        vLLM extends each request's list of output tokens in place as it samples.
        """
        if batch_update is None:
            return
        for row in batch_update.removed:
            self._requests.pop(row, None)
        for row, parameters, _, output_ids in batch_update.added:
            self._requests.pop(row, None)
            grammar = self._grammar(parameters)
            if grammar:
                self._requests[row] = grammar, output_ids
        for a, b, direction in batch_update.moved:
            moved, displaced = self._requests.pop(a, None), self._requests.pop(b, None)
            if moved:
                self._requests[b] = moved
            if displaced and direction == MoveDirectionality.SWAP:
                self._requests[a] = displaced

    def apply(self, logits: Tensor) -> Tensor:
        """Set disallowed logits to -inf, in place.

        Args:
            logits: (requests, vocabulary)
        """
        if not self._requests:
            return logits
        rows: list[int] = []
        columns: list[int] = []
        for row, (grammar, output_ids) in self._requests.items():
            allowed = grammar.allowed(output_ids)
            rows += [row] * len(allowed)
            columns += allowed
        index = torch.tensor([rows, columns], device=logits.device)
        kept = logits[index[0], index[1]]
        logits[torch.tensor(list(self._requests), device=logits.device)] = float("-inf")
        logits[index[0], index[1]] = kept
        return logits

    def _grammar(self, parameters: SamplingParams) -> SelectionGrammar | None:
        wanted = (parameters.extra_args or {}).get(_KEY)
        if wanted is None:
            return None
        style, n, k, excluded = wanted
        key = (style, n, k)
        if key not in self._grammars:
            writer = PromptWriter(load_tokenizer(self._tokenizer_name), style, max_tokens=0)
            self._grammars[key] = SelectionGrammar(writer, n, k)
        return self._grammars[key].without(excluded) if excluded else self._grammars[key]
