"""Direct Retrieval-augmented Optimization, Shi et al., arXiv 2505.03075.

E-step (eq. 8-10 of the paper, with normalised importance weights): w_i is proportional to
p_g(y|x,d_zi) p_s(z_i|x) / q(z_i|x) over the m selections of one question.
M-step: L_s = -sum_i w_i log p_s(z_i|x) and L_g = -sum_i w_i log p_g(y|x,d_zi).

w_i is the reward of REINFORCE without a baseline. `baseline: uniform` subtracts from the selector's
weights what they would be if all rewards were equal: 1/m on policy, where m w_i - 1 is MaxRL's
advantage (arXiv 2602.02710). E[grad log p_s] = 0 at the parameters that sampled, so there the
gradient is in expectation the same up to the self-normalisation, and its variance is lower; after
the iteration's first step it is not quite.
The generator's weights keep their sum of 1: its log-likelihood is the objective, not a score.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from dro_rl.algorithms.group import Coefficients, Group
from dro_rl.sections.algorithm import DroAlgorithm


def importance_weights(
    log_rewards: Sequence[float],
    log_ratios: Sequence[float] | None = None,
    temperature: float = 1.0,
) -> list[float]:
    """Normalised weights of one group, in float64 by logsumexp.

    Args:
        log_rewards: log r(z_i) [nats], m of them; -inf where the reward is 0.
        log_ratios: log p_s(z_i|x) - log q(z_i|x) [nats]; None on policy, where they are 0.
        temperature: tau, divides the log-rewards (not the ratios, which correct the sampling).
    Returns:
        m weights that sum to 1; all 0 when every reward is 0, since such a group says nothing.
    """
    scores = torch.tensor(log_rewards, dtype=torch.float64) / temperature
    if log_ratios is not None:
        scores = scores + torch.tensor(log_ratios, dtype=torch.float64)
    if torch.isneginf(scores).all():
        return [0.0] * len(log_rewards)
    return scores.softmax(0).tolist()


def coefficients(algorithm: DroAlgorithm, group: Group) -> Coefficients:
    """The M-step's coefficients of one group."""
    tau = max(group.answer_tokens, 1) if algorithm.tau == "per_token" else algorithm.tau
    if algorithm.min_effective_sample_size:
        tau = tempered(group, float(tau), algorithm.min_effective_sample_size)
    weights = importance_weights(group.log_rewards, group.log_ratios, float(tau))
    if algorithm.baseline == "none" or not any(weights):
        return Coefficients(tuple(weights), tuple(weights))
    base = importance_weights([0.0] * len(weights), group.log_ratios)
    centred = tuple(w - b for w, b in zip(weights, base, strict=True))
    return Coefficients(centred, tuple(weights))


def tempered(group: Group, tau: float, floor: float) -> float:
    """The least temperature from `tau` up whose weights have an effective sample size of `floor`.

    Tempering as in annealed importance sampling, Neal 2001. As tau grows, the weights of rewards
    above 0 approach each other; where even that is less than the floor, it is the limit.
    """

    def size(temperature: float) -> float:
        return effective_sample_size(
            importance_weights(group.log_rewards, group.log_ratios, temperature)
        )

    finite = [v for v in group.log_rewards if v > -math.inf]
    if not finite or size(tau) >= floor:
        return tau
    high = max(tau, 1.0, max(finite) - min(finite)) * 1e4
    if size(high) < floor:
        return high
    low = tau
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if size(middle) >= floor else (middle, high)
    return high


def effective_sample_size(weights: Sequence[float]) -> float:
    """1 / sum w^2 of normalised weights: m when they are equal, 1 when one has it all."""
    squares = sum(w * w for w in weights)
    return 1 / squares if squares else 0.0
