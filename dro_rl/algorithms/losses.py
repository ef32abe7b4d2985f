"""The selector's losses that compare it, with the policy that sampled or the one that training
started with, on padded tensors.

Shapes: B selections, T tokens; what stands beyond a selection's end does not count. All losses are
sums over selections; the caller divides by the number of questions. Equal selections of a question
are one row whose advantage is the sum of theirs, and whose share is the number of them over m.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dro_rl.sections.algorithm import Algorithm, GrpoAlgorithm, PpoAlgorithm


@dataclass(frozen=True, slots=True)
class Tokens:
    """Rows of selections. `logps` and `values` carry the graph, the rest does not.

    `logps`, `sampled_logps` and `reference_logps` [nats] are the learner's now, the sampler's and
    the frozen reference's. `advantages` are over m. `reference_logps` are None without
    `kl`; `values`, `sampled_values`, `returns` are PPO's, and None elsewhere.
    """

    logps: Tensor
    sampled_logps: Tensor
    advantages: Tensor
    shares_B: Tensor
    mask: Tensor
    reference_logps: Tensor | None = None
    values: Tensor | None = None
    sampled_values: Tensor | None = None
    returns: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Parts:
    """A loss, and what it is made of, as sums over rows.

    `clipped` is the share of a selection's tokens (or of selections) whose gradient the clip
    removed, `kl` the divergence from the reference [nats; a token's with `scale: std`, a
    selection's without], `value_loss` the value head's.
    """

    loss: Tensor
    clipped: float
    kl: float = 0.0
    value_loss: float = 0.0


def selector_loss(algorithm: Algorithm, tokens: Tokens) -> Parts:
    """An algorithm's loss with its divergence and value terms: a clipped ratio, or the weighted
    likelihood."""
    grpo = isinstance(algorithm, GrpoAlgorithm) and algorithm.scale == "std"
    per_row = _token_mean if grpo else _token_sum
    loss, clipped = _policy_loss(algorithm, tokens, per_row)
    kl, value = 0.0, 0.0
    if tokens.reference_logps is not None:
        kl_B = per_row(divergence(tokens.logps, tokens.reference_logps), tokens.mask)
        total = (kl_B * tokens.shares_B).sum()
        loss, kl = loss + algorithm.kl * total, total.item()  # type: ignore[union-attr]
    if isinstance(algorithm, PpoAlgorithm):
        total = (_value_loss(tokens, algorithm.value_clip) * tokens.shares_B).sum()
        loss, value = loss + algorithm.value_weight * total, total.item()
    return Parts(loss, clipped, kl, value)


def _policy_loss(
    algorithm: Algorithm, tokens: Tokens, per_row: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, float]:
    """And the share of what the clip took the gradient from."""
    # An advantage of a selection stands at each of its tokens.
    if algorithm.clips == "no":
        logps_B = _token_sum(tokens.logps, tokens.mask)
        return -(tokens.advantages[:, 0] * logps_B).sum(), 0.0
    clip: float = algorithm.clip  # type: ignore[union-attr]
    log_ratio = (tokens.logps - tokens.sampled_logps) * tokens.mask
    if algorithm.clips == "selections":
        surrogate_B, outside_B = _clipped(log_ratio.sum(1), tokens.advantages[:, 0], clip)
        return -surrogate_B.sum(), (outside_B * tokens.shares_B).sum().item()
    surrogate, outside = _clipped(log_ratio, tokens.advantages, clip)
    clipped = (_token_mean(outside, tokens.mask) * tokens.shares_B).sum().item()
    return -per_row(surrogate, tokens.mask).sum(), clipped


def divergence(logps: Tensor, reference_logps: Tensor) -> Tensor:
    """Estimate of KL(policy || reference) by token [nats], never negative: Schulman's k3, GRPO's
    eq. 4."""
    gap = reference_logps - logps
    return gap.exp() - gap - 1


def _clipped(log_ratio: Tensor, advantages: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """min(ratio A, clip(ratio, 1 - clip, 1 + clip) A), PPO's eq. 7, and where the clip binds."""
    ratio = log_ratio.exp()
    free, bounded = ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages
    return torch.min(free, bounded), (bounded < free).float()


def _value_loss(tokens: Tokens, clip: float | None) -> Tensor:
    """Half the squared error of the value, of the worse of it and it clipped to within `clip` of
    the value at sampling, as PPO's code and TRL's do; summed over tokens: (B,)."""
    assert tokens.values is not None and tokens.sampled_values is not None
    assert tokens.returns is not None
    error = (tokens.values - tokens.returns).square()
    if clip is None:
        return 0.5 * _token_sum(error, tokens.mask)
    moved = (tokens.values - tokens.sampled_values).clamp(-clip, clip)
    bounded = (tokens.sampled_values + moved - tokens.returns).square()
    return 0.5 * _token_sum(torch.max(error, bounded), tokens.mask)


def _token_sum(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum(1)


def _token_mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum(1) / mask.sum(1)
