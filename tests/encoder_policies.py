"""Learners and engines of tiny encoders: of each kind of them, one policy."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dro_rl.encoder_learner import EncoderLearner
from dro_rl.recipe import Recipe
from dro_rl.records import Rollout, WeightedRollout
from dro_rl.rollout.encoder_worker import EncoderWorker
from tests.encoders import make_bi_encoder, make_cross_encoder, make_encoder_recipe
from tests.tiny import make_example

EXAMPLE = make_example()
ORDERS = list(itertools.permutations(range(5), 2))
KINDS = {
    "bi": {},
    "head": {"train": "head"},
    "cross": {},
    "bi, conditional": {"conditional": True},
    "cross, conditional": {"conditional": True},
    "bi, last layer": {"train": "last_layers", "layers": 1},
    "bi, lora": {"lora": {"rank": 4}},
    "cross, lora": {"lora": {"rank": 4}},
}


@dataclass(frozen=True)
class Policy:
    """One kind's learner and worker, and the probability of each of the 20 selections."""

    recipe: Recipe
    learner: EncoderLearner
    worker: EncoderWorker
    probabilities: np.ndarray


def make_models(folder: Path) -> dict[str, Path]:
    bi = make_bi_encoder(folder / "bi")
    return {"bi": bi, "head": bi, "cross": make_cross_encoder(folder / "cross")}


def make_policy(kind: str, models: dict[str, Path], **sections) -> Policy:
    model = models[kind.partition(",")[0]]
    recipe = make_encoder_recipe(model, KINDS[kind], **sections)
    learner = EncoderLearner(recipe, "selector", str(model), 10, 1e-2)
    worker = EncoderWorker(recipe, "selector", str(model))
    if recipe.selector.lora:
        move_adapters(learner)
        worker.load_weights(learner.weights(), 0)
    (logps,) = learner.score([rollout_of(ORDERS)])
    return Policy(recipe, learner, worker, np.exp(logps))


def move_adapters(learner: EncoderLearner) -> None:
    """From where they begin, at which half of their gradient is 0."""
    dice = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, factor in learner.trainable.items():
            if "lora_B" in name:
                factor.copy_(0.02 * torch.randn(factor.shape, generator=dice))


def rollout_of(orders) -> Rollout:
    from dro_rl.prompts import write_selection
    from dro_rl.records import Selection

    made = tuple(Selection(write_selection(z), z, (0.0, 0.0), z, False) for z in orders)
    return Rollout(EXAMPLE, (), made, 0)


def gradient(learner: EncoderLearner, coefficients) -> Tensor:
    """Of -sum_z c_z log p(z|x), as the learner makes it."""
    weighted = WeightedRollout(rollout_of(ORDERS), tuple(coefficients), ())
    learner.optimisation.zero_grad()
    learner.backward([learner.objective.targets(weighted)])
    return flat(learner)


def flat(learner: EncoderLearner) -> Tensor:
    parts = [p.grad for p in learner.trainable.values() if p.grad is not None]
    return torch.cat([p.flatten() for p in parts])


def distance(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())
