"""Both policies on one vLLM engine: each a LoRA adapter on the base that they share."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import get_args

from torch import Tensor

from dro_rl.errors import UserError
from dro_rl.policy.adapters import write_adapter
from dro_rl.recipe import POLICIES, PolicyName, Recipe
from dro_rl.rollout.vllm_engine import VllmEngine, quiet, start_llm

with quiet():
    from vllm import LLM
    from vllm.config.lora import MaxLoRARanks
    from vllm.lora.request import LoRARequest


def adapter_engines(recipe: Recipe, model_dir: str) -> dict[PolicyName, VllmAdapter]:
    """An engine for each policy, on one copy of the base; see `VllmEngine`.

    Raises:
        UserError: an adapter's rank is larger than vLLM serves.
    """
    sections = [recipe.causal_lm(p) for p in POLICIES]
    longest = max(sections, key=lambda s: s.max_length)
    rank = max(s.lora.rank for s in sections if s.lora)
    rooms = [room for room in get_args(MaxLoRARanks) if room >= rank]
    if not rooms:
        raise UserError(
            f"lora.rank {rank}: vLLM serves adapters of rank {max(get_args(MaxLoRARanks))} at "
            "most: lower it, or leave out generator.share_base_with"
        )
    llm = start_llm(
        model_dir,
        longest,
        recipe.rollout,
        recipe.training.seed,
        enable_lora=True,
        max_lora_rank=min(rooms),
        max_loras=len(sections),  # none has to make room for another
        max_cpu_loras=len(sections),
    )
    numbers = count(1)
    return {p: VllmAdapter(model_dir, recipe, p, llm, numbers) for p in POLICIES}


class VllmAdapter(VllmEngine):
    """Samples from one policy of an engine that serves both.

    Args:
        numbers: of adapters on `llm`. Under a number and name that it knows, vLLM would go on
            serving the old weights, and read keys and values of theirs from its prefix cache.
    """

    def __init__(
        self, model_dir: str, recipe: Recipe, policy: PolicyName, llm: LLM, numbers: Iterator[int]
    ) -> None:
        super().__init__(
            model_dir,
            section=recipe.causal_lm(policy),
            rollout=recipe.rollout,
            seed=recipe.training.seed,
            llm=llm,
        )
        self._policy, self._numbers = policy, numbers

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """See Engine.load_weights.

        Raises:
            UserError: vLLM does not serve adapters of these layers.
        """
        number, engine = next(self._numbers), self._llm.llm_engine
        if self._adapter is not None:  # first: of three, vLLM might drop the other policy's
            engine.remove_lora(self._adapter.lora_int_id)
        with tempfile.TemporaryDirectory() as folder:  # vLLM keeps what it has read
            write_adapter(Path(folder), weights)
            self._adapter = LoRARequest(f"{self._policy}-{number}", number, folder)
            try:
                engine.add_lora(self._adapter)
            except (ValueError, RuntimeError) as error:  # of names, of shapes
                raise UserError(
                    f"{self._policy}.lora: vLLM cannot serve this adapter ({error}): change "
                    "target_modules, or leave out generator.share_base_with"
                ) from error
        self._reset_prefix_cache()
