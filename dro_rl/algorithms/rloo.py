"""REINFORCE leave-one-out: Kool et al. 2019; Ahmadian et al., arXiv 2402.14740, eq. 8.

A_i = r_i - 1/(m-1) sum_{j != i} r_j: the baseline of a selection is made of the others alone, so
the gradient is that of E[r] without bias. The loss is the clipped ratio of whole selections
(`algorithms.losses`), whose gradient at the policy that sampled is A_i grad log p_s(z_i|x).
"""

from __future__ import annotations

from dro_rl.algorithms.group import Coefficients, Group, expected_reward, shifted
from dro_rl.sections.algorithm import RlooAlgorithm


def coefficients(algorithm: RlooAlgorithm, group: Group) -> Coefficients:
    """Advantages over m for the selector, 1/m for the generator."""
    rewards = shifted(group.rewards(algorithm.maximise))
    total, others = sum(rewards), len(rewards) - 1
    return expected_reward([r - (total - r) / others for r in rewards])
