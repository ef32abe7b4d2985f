"""REINFORCE with a running baseline, Williams 1992 (Machine Learning 8, eq. 11 and sec. 4).

A_i = (p_s / q)(z_i|x) (r_i - b), where b is a mean of earlier rewards and of other questions', so
that it does not depend on the question's own selections and leaves the gradient unbiased.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from dro_rl.algorithms.group import Coefficients, Group
from dro_rl.sections.algorithm import ReinforceAlgorithm


def coefficients(algorithm: ReinforceAlgorithm, group: Group, baseline: float) -> Coefficients:
    """Advantages over m for the selector, p_s / q over m (1/m on policy) for the generator."""
    m = len(group.log_rewards)
    rewards, ratios = group.rewards(algorithm.maximise), group.ratios()
    return Coefficients(
        tuple(p * (r - baseline) / m for p, r in zip(ratios, rewards, strict=True)),
        tuple(p / m for p in ratios),
    )


def mean_rewards(algorithm: ReinforceAlgorithm, groups: Sequence[Group]) -> list[float]:
    """The mean reward of each group."""
    return [statistics.fmean(g.rewards(algorithm.maximise)) for g in groups]


def baselines(means: Sequence[float], previous: float | None, decay: float) -> list[float]:
    """The baseline of each question of an iteration.

    Args:
        means: each question's mean reward, in this iteration.
        previous: the running mean after the last iteration; None in the first.
        decay: of the running mean.
    Returns:
        decay * previous + (1 - decay) * the mean of the iteration's other questions; in the first
        iteration that mean alone, and 0 for a single question.
    """
    total, others = sum(means), len(means) - 1
    if others == 0:
        return [previous or 0.0]
    rest = [(total - mean) / others for mean in means]
    return rest if previous is None else [decay * previous + (1 - decay) * r for r in rest]


def running_mean(means: Sequence[float], previous: float | None, decay: float) -> float:
    """The running mean reward after an iteration."""
    now = statistics.fmean(means)
    return now if previous is None else decay * previous + (1 - decay) * now
