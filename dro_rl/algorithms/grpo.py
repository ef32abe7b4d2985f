"""GRPO, Shao et al., arXiv 2402.03300, eq. 3-4; Dr. GRPO, Liu et al., arXiv 2503.20783.

A_i = (r_i - mean r) / (std r + 1e-4), with the sample deviation of the question's m selections. The
loss is the clipped ratio of each token, averaged over a selection's tokens (`algorithms.losses`),
plus `kl` times the divergence from the selector that training started with.
`scale: none` is Dr. GRPO: no division by the deviation, and a sum over tokens (theirs divides by a
constant length), which makes the gradient (1 - 1/m) times that of E[r].
"""

from __future__ import annotations

import statistics

from dro_rl.algorithms.group import Coefficients, Group, expected_reward, shifted
from dro_rl.sections.algorithm import GrpoAlgorithm

EPSILON = 1e-4  # TRL's; keeps a group of equal rewards at 0 instead of 0/0


def coefficients(algorithm: GrpoAlgorithm, group: Group) -> Coefficients:
    """Advantages over m for the selector, 1/m for the generator."""
    rewards = shifted(group.rewards(algorithm.maximise))
    mean = statistics.fmean(rewards)
    scale = statistics.stdev(rewards) + EPSILON if algorithm.scale == "std" else 1.0
    return expected_reward([(r - mean) / scale for r in rewards])
