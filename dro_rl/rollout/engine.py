"""What a rollout engine is: something that samples completions and takes new weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from dro_rl.policy.distinct import SelectionGrammar

Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """One sampled completion.

    `token_ids` end with the end-of-sequence token unless the length limit cut it short; `logps`
    [nats, one a token] are of the distribution really sampled from: after the grammar's mask and,
    unless greedy, after temperature, top-k and top-p.
    """

    token_ids: Tokens
    logps: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Usage:
    """What an engine did [tokens]: prompts, each counted once a sample; the part of them that it
    read from its cache of prefixes instead of computing it; and what it sampled."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    sampled_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.cached_tokens + other.cached_tokens,
            self.sampled_tokens + other.sampled_tokens,
        )

    @property
    def computed(self) -> int:
        """Tokens through the model."""
        return self.prompt_tokens - self.cached_tokens + self.sampled_tokens

    @property
    def prefix_cache_hits(self) -> float:
        """Share of the prompt tokens that were not computed; nan of none."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else math.nan


class Engine(Protocol):
    """Samples from one causal LM."""

    name: str
    version: str
    usage: Usage
    """Of all calls of `generate` so far; `score` is not counted."""

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
        """`samples` completions of each prompt.

        The same call with the same weights gives the same samples, whatever came before it.

        Args:
            on_policy: at temperature 1 without truncation, whatever the recipe samples at.
            grammars: one a prompt, to sample among the tokens that each allows; None for free.
        """
        ...

    def score(self, prompt_ids: Tokens, completion_ids: Tokens) -> list[float]:
        """log p of each token of a fixed completion [nats]: no grammar, temperature 1."""
        ...

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Replace all weights, named as in a Hugging Face checkpoint; or, of an engine that serves
        a policy beside another on one base, its adapter (`lora.adapter_factors`)."""
        ...
