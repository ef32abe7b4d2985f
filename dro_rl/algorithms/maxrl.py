"""MaxRL, arXiv 2602.02710: the policy gradient of log E[r] instead of E[r].

A_i = (r_i - mean r) / mean r, with the mean over the question's m selections; 0 where no selection
has a reward. As m grows its expectation approaches grad log E[r]; for rewards in {0, 1} and finite
m, it is the gradient of the first m - 1 terms of log's Maclaurin series in the failure rate
1 - E[r] (without the baseline, as for the generator, of the first m).
With r = p_g, A_i / m is DRO's w_i - 1/m. The generator takes r_i / (m mean r), which is DRO's w_i.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from dro_rl.algorithms.group import Coefficients, Group
from dro_rl.sections.algorithm import MaxrlAlgorithm


def coefficients(algorithm: MaxrlAlgorithm, group: Group) -> Coefficients:
    """Advantages over m for the selector; in logarithms, since likelihoods underflow."""
    m, best = len(group.log_rewards), max(group.log_rewards)
    if best == -math.inf:
        return Coefficients((0.0,) * m, (0.0,) * m)
    ratios = group.log_ratios or (0.0,) * m
    total = _log_sum_exp(ratios)
    shares = [math.exp(r - total) for r in ratios]  # 1/m on policy
    below = [v - best for v in group.log_rewards]  # so that equal rewards give exactly 0
    log_mean = _log_sum_exp([v + r for v, r in zip(below, ratios, strict=True)]) - total
    relative = [math.exp(v - log_mean) for v in below]
    return Coefficients(
        tuple(s * (r - 1) for s, r in zip(shares, relative, strict=True)),
        tuple(s * r for s, r in zip(shares, relative, strict=True)),
    )


def _log_sum_exp(values: Sequence[float]) -> float:
    largest = max(values)
    if largest == -math.inf:
        return largest
    return largest + math.log(sum(math.exp(v - largest) for v in values))
