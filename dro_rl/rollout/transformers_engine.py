"""The plain engine: a transformers forward, a key-value cache and a sampling loop.

For machines that vLLM does not support, and as the reference that the vLLM engine is tested
against. A letter of a tensor's shape: P prompts, B = P * samples sequences, T tokens, V words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import DynamicCache

from dro_rl.policy import causal_lm
from dro_rl.policy.distinct import SelectionGrammar
from dro_rl.policy.merging import load_weights
from dro_rl.rollout.engine import Sample, Tokens, Usage
from dro_rl.sections.policy import PolicySection
from dro_rl.sections.process import RolloutSection

_NEVER = float("-inf")


class TransformersEngine:
    """Samples from one causal LM.

    Args:
        model_dir: a folder in Hugging Face format, or a hub name.
        section: of the policy.
        rollout: of the recipe.
        seed: unused: each call of `generate` brings its own.
        model: a loaded one that other engines use too.
    """

    name = "transformers"
    version: str = transformers.__version__

    def __init__(
        self,
        model_dir: str,
        *,
        section: PolicySection,
        rollout: RolloutSection,
        seed: int,
        model: Any = None,
    ) -> None:
        self._section, self._rollout = section, rollout
        self.usage = Usage()
        self._model: Any = model or causal_lm.load_model(section, model_dir, training=False)
        self._eos = int(causal_lm.load_tokenizer(model_dir).eos_token_id)  # type: ignore[arg-type]

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Tokens],
        *,
        samples: int,
        seed: int,
        greedy: bool = False,
        on_policy: bool = False,
        grammars: Sequence[SelectionGrammar] | None = None,
    ) -> list[list[Sample]]:
        """See Engine.generate. Prompts of like length share a batch."""
        generator = torch.Generator(self._model.device).manual_seed(seed)
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        size = max(1, self._rollout.max_sequences // samples)
        groups: dict[int, list[Sample]] = {}
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            chosen = [grammars[i] for i in batch for _ in range(samples)] if grammars else None
            flat = self._sample_batch(
                [prompts[i] for i in batch],
                samples,
                chosen,
                None if greedy else generator,
                on_policy,
            )
            for row, i in enumerate(batch):
                groups[i] = flat[row * samples : (row + 1) * samples]
        computed = sum(map(len, prompts))  # once for all samples of a prompt
        sampled = sum(len(s.token_ids) for group in groups.values() for s in group)
        self.usage += Usage(computed * samples, computed * (samples - 1), sampled)
        return [groups[i] for i in range(len(prompts))]

    @torch.inference_mode()
    def score(self, prompt_ids: Tokens, completion_ids: Tokens) -> list[float]:
        """See Engine.score."""
        tokens = torch.tensor([[*prompt_ids, *completion_ids]], device=self._model.device)
        logits_T_V = self._model(input_ids=tokens[:, :-1]).logits[0, len(prompt_ids) - 1 :]
        logps_T_V = logits_T_V.float().log_softmax(-1)
        return logps_T_V.gather(1, tokens[0, len(prompt_ids) :, None])[:, 0].tolist()

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """See Engine.load_weights."""
        load_weights(self._model, weights)

    def _sample_batch(
        self,
        prompts: Sequence[Tokens],
        samples: int,
        grammars: Sequence[SelectionGrammar] | None,
        generator: torch.Generator | None,
        on_policy: bool,
    ) -> list[Sample]:
        """`samples` completions of each prompt, in a row; greedy without a generator."""
        tokens_P_T, mask = self._left_padded(prompts)
        cache = DynamicCache(config=self._model.config)
        logits = self._forward(tokens_P_T, mask, cache)
        cache.batch_repeat_interleave(samples)
        logits, mask = logits.repeat_interleave(samples, 0), mask.repeat_interleave(samples, 0)
        token_ids: list[list[int]] = [[] for _ in range(len(logits))]
        logps: list[list[float]] = [[] for _ in range(len(logits))]
        live = [True] * len(logits)
        plain = on_policy or generator is None
        for left in reversed(range(self._section.max_new_tokens)):
            logps_B_V = self._distribution(logits, grammars, token_ids, live, plain)
            chosen_B = _draw(logps_B_V, generator)
            logp_B = logps_B_V.gather(1, chosen_B[:, None])[:, 0]
            drawn = zip(chosen_B.tolist(), logp_B.tolist(), strict=True)
            for row, (token, logp) in enumerate(drawn):
                if live[row]:
                    token_ids[row].append(token)
                    logps[row].append(logp)
                    live[row] = token != self._eos
            if not (left and any(live)):
                break
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
            logits = self._forward(chosen_B[:, None], mask, cache)
        return [Sample(tuple(t), tuple(p)) for t, p in zip(token_ids, logps, strict=True)]

    def _left_padded(self, prompts: Sequence[Tokens]) -> tuple[Tensor, Tensor]:
        width = max(map(len, prompts))
        rows = [[self._eos] * (width - len(p)) + list(p) for p in prompts]
        mask = [[0] * (width - len(p)) + [1] * len(p) for p in prompts]
        device = self._model.device
        return torch.tensor(rows, device=device), torch.tensor(mask, device=device)

    def _forward(self, tokens: Tensor, mask: Tensor, cache: DynamicCache) -> Tensor:
        """Logits of the next token: (sequences, V), float32."""
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        output = self._model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1].float()

    def _distribution(
        self,
        logits_B_V: Tensor,
        grammars: Sequence[SelectionGrammar] | None,
        token_ids: Sequence[Sequence[int]],
        live: Sequence[bool],
        plain: bool,
    ) -> Tensor:
        """log-probabilities that the next token is drawn from: (B, V). `plain`: the model's own,
        but for the grammar."""
        if grammars:
            keep = torch.zeros_like(logits_B_V, dtype=torch.bool)
            for row, grammar in enumerate(grammars):
                allowed = grammar.allowed(token_ids[row]) if live[row] else [self._eos]
                keep[row, allowed] = True
            logits_B_V = logits_B_V.masked_fill(~keep, _NEVER)
        if plain:
            return logits_B_V.log_softmax(-1)
        rollout = self._rollout
        logits_B_V = logits_B_V / rollout.temperature
        if rollout.top_k:
            kth = logits_B_V.topk(min(rollout.top_k, logits_B_V.shape[1])).values[:, -1:]
            logits_B_V = logits_B_V.masked_fill(logits_B_V < kth, _NEVER)
        if rollout.top_p < 1:
            logits_B_V = _nucleus(logits_B_V, rollout.top_p)
        return logits_B_V.log_softmax(-1)


def _nucleus(logits_B_V: Tensor, top_p: float) -> Tensor:
    """Keep the likeliest tokens whose probabilities first reach `top_p`."""
    ordered, index = logits_B_V.sort(descending=True)
    probabilities = ordered.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    return torch.empty_like(logits_B_V).scatter(
        1, index, ordered.masked_fill(before >= top_p, _NEVER)
    )


def _draw(logps_B_V: Tensor, generator: torch.Generator | None) -> Tensor:
    if generator is None:
        return logps_B_V.argmax(-1)
    return torch.multinomial(logps_B_V.exp(), 1, generator=generator)[:, 0]
