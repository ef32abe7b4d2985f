"""PPO, Schulman et al., arXiv 1707.06347, eq. 7 and 9, with GAE, arXiv 1506.02438, eq. 16.

The selector's tokens are the actions; the reward comes with the last. A value head on the selector
gives V_t before each token, and without discounting

    delta_t = r_t + V_{t+1} - V_t,   A_t = delta_t + lambda A_{t+1},   return_t = A_t + V_t.

The loss is the clipped ratio of each token plus `value_weight` times the value head's
(`algorithms.losses`), which the model under the head learns too. With lambda = 1, without
normalisation and without that second term, the gradient at the policy that sampled is that of E[r].
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace

from dro_rl.algorithms.group import Coefficients, Group
from dro_rl.records import TokenTargets
from dro_rl.sections.algorithm import PpoAlgorithm


def coefficients(algorithm: PpoAlgorithm, group: Group) -> Coefficients:
    """Each token's advantage and return; for the selector as a whole, the mean advantage over m."""
    rewards = group.rewards(algorithm.maximise)
    tokens = tuple(
        generalised_advantages(r, values, algorithm.gae_lambda)
        for r, values in zip(rewards, group.values, strict=True)
    )
    return _summed_up(tokens)


def generalised_advantages(
    reward: float, values: Sequence[float], gae_lambda: float
) -> TokenTargets:
    """GAE of one selection, undiscounted.

    Args:
        reward: comes with the last token.
        values: V before each token.
        gae_lambda: lambda, 1 for the return less the value, 0 for one step of temporal difference.
    """
    advantages = [0.0] * len(values)
    following = 0.0
    for t in reversed(range(len(values))):
        last = t == len(values) - 1
        delta = (reward if last else values[t + 1]) - values[t]
        following = delta + gae_lambda * following
        advantages[t] = following
    returns = tuple(a + v for a, v in zip(advantages, values, strict=True))
    return TokenTargets(tuple(advantages), returns, tuple(values))


def normalise(weighed: Sequence[Coefficients]) -> list[Coefficients]:
    """Advantages of all tokens of an iteration with mean 0 and deviation 1; returns stay."""
    flat = [a for c in weighed for t in c.tokens for a in t.advantages]
    mean, deviation = statistics.fmean(flat), statistics.pstdev(flat)
    scale = 1 / math.sqrt(deviation**2 + 1e-8)
    return [
        _summed_up(
            tuple(
                replace(t, advantages=tuple((a - mean) * scale for a in t.advantages))
                for t in c.tokens
            )
        )
        for c in weighed
    ]


def _summed_up(tokens: tuple[TokenTargets, ...]) -> Coefficients:
    m = len(tokens)
    means = tuple(statistics.fmean(t.advantages) / m for t in tokens)
    return Coefficients(means, (1 / m,) * m, tokens)
