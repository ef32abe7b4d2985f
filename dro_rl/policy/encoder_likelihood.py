"""log p(selection) of a sentence encoder, for a learner: what `Likelihood` is for a causal LM."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from dro_rl.policy.encoder import Encoder
from dro_rl.policy.picks import Picks, State, pick_logps


class EncoderLikelihood:
    """Log-likelihoods under one encoder, which may learn between calls."""

    why_dense: str | None = None  # every text of a pass is read once, so costs add up
    checks_by_itself = True

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder

    def describe(self) -> str:
        """For people."""
        return f"scores of a {self.encoder.what}"

    def cost(self, completions: Sequence[Picks]) -> int:
        """Tokens that a forward pass over them takes; of a frozen encoder, texts."""
        return self.encoder.cost(_states(completions))

    def of(self, completions: Sequence[Picks]) -> Tensor:
        """Sum over picks of log p [nats], float32: (B,)."""
        return self.tokens(completions).sum(1)

    def tokens(self, completions: Sequence[Picks]) -> Tensor:
        """log p of every pick [nats], float32: (B, K), 0 after a selection's end."""
        states = _states(completions)
        return pick_logps(self.encoder.scores(states), states, completions)

    def check(self, completions: Sequence[Picks]) -> None:
        """There is one way only."""


def _states(completions: Sequence[Picks]) -> list[State]:
    return list(dict.fromkeys(state for c in completions for state in c.states))
