"""What an algorithm is given of a question's m selections, and what it gives back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dro_rl.errors import UserError
from dro_rl.records import TokenTargets


@dataclass(frozen=True, slots=True)
class Group:
    """A question's m selections; every tuple has one entry a selection.

    `log_rewards` are log r(z_i) [nats], -inf where the reward is 0. `log_ratios` are
    log p_s(z_i|x) - log q(z_i|x) [nats]; None on policy, where they are 0. `logps` are
    log p_s(z_i|x) [nats] at the weights that sampled. `answer_tokens` is |y|. `values` are the
    value head's, one a token, for PPO alone.

    Raises:
        UserError: a log-reward is NaN or +inf; the example is named.
    """

    example: str
    log_rewards: tuple[float, ...]
    log_ratios: tuple[float, ...] | None = None
    logps: tuple[float, ...] = ()
    answer_tokens: int = 0
    values: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        for value in self.log_rewards:
            if math.isnan(value) or value == math.inf:
                raise UserError(
                    f"example {self.example}: its log-reward is {value}: if the reward is a "
                    "likelihood, the generator has diverged: lower generator.learning_rate; else "
                    "mend the reward"
                )

    def rewards(self, maximise: str) -> list[float]:
        """What an algorithm that maximises an expectation takes the expectation of.

        Args:
            maximise: "reward" for r, "log_reward" for log r.
        Raises:
            UserError: log r of a reward of 0, or r of a log-reward beyond 700 nats.
        """
        for value in self.log_rewards:
            if maximise == "log_reward" and value == -math.inf:
                raise UserError(
                    f"example {self.example}: a selection's reward is 0, which has no logarithm: "
                    "set algorithm.maximise: reward, or take a reward that is always positive"
                )
            if maximise == "reward" and value > 700:
                raise UserError(
                    f"example {self.example}: a log-reward of {value:.0f} nats is too large for "
                    "its exponential: set algorithm.maximise: log_reward"
                )
        logs = self.log_rewards
        return list(logs) if maximise == "log_reward" else [math.exp(v) for v in logs]

    def ratios(self) -> list[float]:
        """p_s(z_i|x) / q(z_i|x)."""
        return [math.exp(r) for r in self.log_ratios or (0.0,) * len(self.log_rewards)]


@dataclass(frozen=True, slots=True)
class Coefficients:
    """What multiplies log p of each selection (selector) and its answer (generator): m each.

    For a clipped ratio `selector` is the advantage over m. `tokens` are PPO's.
    """

    selector: tuple[float, ...]
    generator: tuple[float, ...]
    tokens: tuple[TokenTargets, ...] = ()


def expected_reward(advantages: Sequence[float]) -> Coefficients:
    """Of the algorithms that maximise E[r]: advantages over m for the selector. The generator
    maximises E[log p_g(y|x,d_z)] over the same selections: 1/m each."""
    m = len(advantages)
    return Coefficients(tuple(a / m for a in advantages), (1 / m,) * m)


def shifted(rewards: Sequence[float]) -> list[float]:
    """Rewards less the first: advantages are the same, and exactly 0 where all are equal, which a
    mean rounds away from."""
    return [r - rewards[0] for r in rewards]
