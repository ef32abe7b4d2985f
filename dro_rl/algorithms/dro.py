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

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dro_rl.recipe import DroAlgorithm


@dataclass(frozen=True, slots=True)
class Coefficients:
    """What multiplies -log p of each selection (selector) and its answer (generator): m each."""

    selector: tuple[float, ...]
    generator: tuple[float, ...]


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


def coefficients(
    algorithm: DroAlgorithm,
    log_rewards: Sequence[float],
    answer_tokens: int,
    log_ratios: Sequence[float] | None = None,
) -> Coefficients:
    """The M-step's coefficients of one group; see `importance_weights` for the arguments.

    `answer_tokens` is |y|, the temperature of `tau: per_token`.
    """
    tau = algorithm.tau if algorithm.tau != "per_token" else max(answer_tokens, 1)
    weights = importance_weights(log_rewards, log_ratios, float(tau))
    if algorithm.baseline == "none" or not any(weights):
        return Coefficients(tuple(weights), tuple(weights))
    base = importance_weights([0.0] * len(weights), log_ratios)
    centred = tuple(w - b for w, b in zip(weights, base, strict=True))
    return Coefficients(centred, tuple(weights))


def effective_sample_size(weights: Sequence[float]) -> float:
    """1 / sum w^2 of normalised weights: m when they are equal, 1 when one has it all."""
    squares = sum(w * w for w in weights)
    return 1 / squares if squares else 0.0
