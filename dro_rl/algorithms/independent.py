"""Independent top-k marginalisation, which DRO replaces: each document stands alone.

RAG, Lewis et al., arXiv 2005.11401, sec. 2.1 (RAG-Sequence); REPLUG LSR, arXiv 2301.12652; EMDR2,
arXiv 2106.05346, eq. 4:

    p(y|x) = sum_k p(d_k|x) p_g(y|x,d_k),   p(d_k|x) over the m documents of the highest score.

A document's score is the selector's probability of naming it first, and m `samples` are the m
highest, each a selection of its own. With p~ renormalised over them and the posterior
w_k = p~_k p_g(y|x,d_k) / p(y|x), the gradient of log p(y|x) is

    sum_k (w_k - p~_k) grad log p(d_k|x) + sum_k w_k grad log p_g(y|x,d_k).
"""

from __future__ import annotations

from dro_rl.algorithms.dro import importance_weights
from dro_rl.algorithms.group import Coefficients, Group
from dro_rl.sections.algorithm import IndependentAlgorithm


def coefficients(algorithm: IndependentAlgorithm, group: Group) -> Coefficients:
    """Posterior less prior for the selector, the posterior for the generator; all 0 where no
    document has a reward."""
    posterior = importance_weights(group.log_rewards, group.logps)
    if not any(posterior):
        return Coefficients(tuple(posterior), tuple(posterior))
    prior = importance_weights([0.0] * len(posterior), group.logps)
    return Coefficients(
        tuple(w - p for w, p in zip(posterior, prior, strict=True)), tuple(posterior)
    )
