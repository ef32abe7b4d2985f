"""A recipe of two adapters on one base, and the same of two models apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dro_rl.recipe import POLICIES, Recipe
from tests.tiny import make_policies, make_recipe

LORA = {"selector": {"rank": 4, "alpha": 6}, "generator": {"rank": 2, "target_modules": ["q_proj"]}}


def recipe_of(folder: Path, *, shared: bool, **sections: Any) -> Recipe:
    base = str(make_policies(folder)["selector"])
    policies = {
        policy: {"model": base, "lora": LORA[policy], "learning_rate": 1e-2} for policy in POLICIES
    }
    for policy in POLICIES:
        policies[policy].update(sections.pop(policy, {}))
    if shared:
        policies["generator"]["share_base_with"] = "selector"
    return make_recipe(folder, **policies, **sections)
