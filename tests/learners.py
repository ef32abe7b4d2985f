"""A learner of a tiny policy, and a batch for it."""

from __future__ import annotations

from pathlib import Path

from dro_rl.learner import Learner
from dro_rl.recipe import PolicyName
from dro_rl.records import WeightedRollout
from tests.tiny import make_example, make_recipe, make_rollout

CHOSEN = [[(0, 1), (2, 3), (0, 1)], [(4,), (1, 0), (3, 2)], [(2, 0), (0, 2), (1, 3)]]


def make_learner(folder: Path, policy: PolicyName = "selector", **sections) -> Learner:
    recipe = make_recipe(folder, **sections)
    return Learner(recipe, policy, recipe.policy(policy).model, 20, 1e-2)


def make_batch(learner: Learner) -> list[WeightedRollout]:
    batch = []
    for number, chosen in enumerate(CHOSEN):
        rollout = make_rollout(learner.recipe, make_example(number), chosen)
        weights = (0.5, 0.3, 0.2)
        batch.append(WeightedRollout(rollout, weights, weights))
    return batch
