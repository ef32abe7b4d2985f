"""Several rewards as one: a weighted sum on one scale.

Linear rewards add up to r = sum_k w_k r_k. Log-rewards add up to log r = sum_k w_k log r_k, which
is the product of powers r_k^w_k: a reward of 0 in one is 0 in all. A likelihood of e^-30 and an F1
have no scale in common, so a sum of both says of each term which it means, by `scale`: `log` takes
the logarithm of a linear reward, `linear` the exponential of a log-reward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dro_rl.errors import UserError
from dro_rl.records import Outcome
from dro_rl.reward.base import Reward, Scale
from dro_rl.reward.checks import as_scale, place_of, usable_scores


@dataclass(frozen=True)
class Term:
    """A reward, its weight (above 0), and the scale it is taken on; None is its own."""

    reward: Reward
    weight: float
    scale: Scale | None = None

    @property
    def on(self) -> Scale:
        return self.scale or self.reward.scale

    def scores(self, outcomes: Sequence[Outcome]) -> list[float]:
        """Weighted, on the term's scale."""
        values = usable_scores(self.reward, outcomes)
        return [self._weighted(v, o) for v, o in zip(values, outcomes, strict=True)]

    def _weighted(self, value: float, outcome: Outcome) -> float:
        try:
            return self.weight * as_scale(value, self.reward.scale, self.on)
        except OverflowError as error:
            raise UserError(
                f"reward {type(self.reward).__name__}, {place_of(outcome)}: a log-reward of "
                f"{value:g} nats is too large for its exponential: drop scale: linear"
            ) from error


class WeightedSum(Reward):
    """See above.

    Raises:
        UserError: the terms are on different scales.
    """

    def __init__(self, terms: Sequence[Term]) -> None:
        self.terms = terms
        self.scale: Scale = terms[0].on
        if any(t.on != self.scale for t in terms):
            named = ", ".join(f"{type(t.reward).__name__} is {t.on}" for t in terms)
            raise UserError(
                f"reward: a sum needs one scale, and {named}: give terms `scale: log` (the product "
                "of powers) or `scale: linear` (the sum of the rewards themselves)"
            )
        self.needs = tuple(dict.fromkeys(n for t in terms for n in t.reward.needs))
        self.remote = any(t.reward.remote for t in terms)

    def score(self, outcomes: Sequence[Outcome]) -> list[float]:
        columns = [t.scores(outcomes) for t in self.terms]
        return [sum(scores) for scores in zip(*columns, strict=True)]
