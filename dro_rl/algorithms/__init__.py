"""From rewards to coefficients, by the algorithm that the recipe names: `weigh`.

What every algorithm does with rewards that say nothing: selections of equal reward get equal
coefficients, and a group of equal rewards moves GRPO's and RLOO's selector not at all. A reward of
0 (log-reward -inf) has weight 0; a group in which every reward is 0 gets coefficients 0 from
`dro`, `maxrl` and `independent`. NaN and +inf are errors that name the question.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dro_rl.algorithms import dro, grpo, independent, maxrl, ppo, reinforce, rloo
from dro_rl.algorithms.group import Coefficients, Group
from dro_rl.sections.algorithm import Algorithm, PpoAlgorithm, ReinforceAlgorithm

__all__ = ["Coefficients", "Group", "weigh"]

_BY_GROUP: dict[str, Callable[[Any, Group], Coefficients]] = {
    "dro": dro.coefficients,
    "maxrl": maxrl.coefficients,
    "grpo": grpo.coefficients,
    "rloo": rloo.coefficients,
    "independent": independent.coefficients,
}


def weigh(
    algorithm: Algorithm, groups: Sequence[Group], running_mean: float | None = None
) -> tuple[list[Coefficients], float | None]:
    """The coefficients of an iteration's groups.

    Args:
        algorithm: the recipe's section.
        groups: all of the iteration.
        running_mean: of earlier iterations' rewards, for `reinforce`; None in the first.
    Returns:
        one Coefficients a group, and the running mean after this iteration.
    Raises:
        UserError: a reward the algorithm cannot use; the example is named.
    """
    if isinstance(algorithm, ReinforceAlgorithm):
        means = reinforce.mean_rewards(algorithm, groups)
        bases = reinforce.baselines(means, running_mean, algorithm.decay)
        weighed = [
            reinforce.coefficients(algorithm, g, b) for g, b in zip(groups, bases, strict=True)
        ]
        return weighed, reinforce.running_mean(means, running_mean, algorithm.decay)
    if isinstance(algorithm, PpoAlgorithm):
        weighed = [ppo.coefficients(algorithm, g) for g in groups]
        return (ppo.normalise(weighed) if algorithm.normalise else weighed), running_mean
    one = _BY_GROUP[algorithm.kind]
    return [one(algorithm, g) for g in groups], running_mean
