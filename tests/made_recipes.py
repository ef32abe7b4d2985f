"""Recipes of models that are not there, for what is worked out without them."""

from typing import Any

from dro_rl.estimate.shape import Shape
from dro_rl.recipe import Recipe

BILLION = Shape(16, 2048, 16, 16, 128, 8192, 32000, False)


def recipe_of(**sections: dict[str, Any]) -> Recipe:
    """Of two models of a billion parameters; `sections` override."""
    policy = {"model": "someone/Model-1B", "max_length": 1024, "max_new_tokens": 32}
    settings: dict[str, dict[str, Any]] = {
        "data": {"kind": "jsonl", "path": "unused.jsonl"},
        "retrieval": {"kind": "given", "candidates": 5},
        "selector": dict(policy),
        "generator": dict(policy),
    }
    for name, changes in sections.items():
        settings[name] = {**settings.get(name, {}), **changes}
    return Recipe.model_validate(settings)
