"""What `trl_parity.py` gives to both sides: rollouts, rewards, and the weights of the policies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dro_rl.recipe import Recipe
from dro_rl.records import Rollout
from dro_rl.rollout.worker import RolloutWorker
from tests.tiny import make_example, make_recipe

QUESTIONS, SAMPLES = 6, 8
LEVELS = (0.0, 0.5, 2 / 3, 0.8, 1.0)  # graded rewards, as F1 gives
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """What is compared. `clip` is small enough to bind off policy."""

    name: str
    algorithm: dict[str, Any]
    off_policy: bool
    seed: int = 0


@dataclass(frozen=True)
class Problem:
    """Rollouts of the sampling policy and their rewards, and the weights that learn from them."""

    recipe: Recipe
    rollouts: list[Rollout]
    rewards: list[tuple[float, ...]]
    sampled: Weights
    current: Weights


def make_problem(case: Case, folder: Path) -> Problem:
    """Groups with repeated selections, unequal lengths and, in one, equal rewards."""
    recipe = make_recipe(
        folder / f"models-{case.seed}",
        algorithm={"samples": SAMPLES, "train": ["selector"], **case.algorithm},
    )
    worker = RolloutWorker(recipe, "selector", recipe.selector.model)
    start = weights_of(worker._engine._model)  # type: ignore[attr-defined]
    sampled = moved(start, 0.05, 10 * case.seed + 1)
    current = moved(sampled, 0.05, 10 * case.seed + 2) if case.off_policy else sampled
    worker.load_weights({n: w.numpy() for n, w in sampled.items()}, 0)
    examples = [make_example(i, documents=5 - i % 2) for i in range(QUESTIONS)]
    rollouts = [_uneven(r) for r in worker.select(examples, SAMPLES, seed=case.seed)]
    draw = torch.Generator().manual_seed(case.seed)
    rewards = [
        tuple(LEVELS[i] for i in torch.randint(len(LEVELS), (SAMPLES,), generator=draw).tolist())
        for _ in rollouts
    ]
    rewards[2], rewards[4] = (0.5,) * SAMPLES, (0.0,) * SAMPLES
    rewards = [_equal_for_equal(r, given) for r, given in zip(rollouts, rewards, strict=True)]
    return Problem(recipe, rollouts, rewards, sampled, current)


def _uneven(rollout: Rollout) -> Rollout:
    """Selections of different lengths, as if the limit had cut them, and the first one twice."""
    cut = [
        replace(s, token_ids=s.token_ids[: 3 + i % 6], logps=s.logps[: 3 + i % 6])
        for i, s in enumerate(rollout.selections)
    ]
    cut[3] = cut[5] = cut[0]
    return replace(rollout, selections=tuple(cut))


def _equal_for_equal(rollout: Rollout, rewards: Sequence[float]) -> tuple[float, ...]:
    first: dict[tuple[int, ...], float] = {}
    selections = zip(rollout.selections, rewards, strict=True)
    return tuple(first.setdefault(s.token_ids, r) for s, r in selections)


def weights_of(model: Any) -> Weights:
    """A copy of a model's."""
    return {n: w.detach().clone() for n, w in model.state_dict().items()}


def moved(weights: Mapping[str, Tensor], by: float, seed: int) -> Weights:
    """Weights at a relative distance of `by`, in a random direction."""
    draw = torch.Generator().manual_seed(seed)
    return {
        n: w + by * w.std() * torch.randn(w.shape, generator=draw) if w.dim() > 1 else w.clone()
        for n, w in weights.items()
    }
