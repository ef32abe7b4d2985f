"""Recipes that a test writes, and what a user is told of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

from dro_rl.errors import UserError
from dro_rl.recipe_file import load_recipe

VALID = """
data:
  kind: jsonl
  path: train.jsonl
  evaluation_questions: 2
retrieval:
  kind: given
  candidates: 10
selector:
  model: models/selector
generator:
  model: models/generator
"""


def writer(folder: Path) -> Callable[..., str]:
    """Writes a recipe into the folder; gives its path."""

    def write(text: str = VALID, name: str = "recipe.yaml") -> str:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text))
        return str(path)

    return write


def problem(name: str, *overrides: str) -> str:
    """What `load_recipe` says of it."""
    with pytest.raises(UserError) as told:
        load_recipe(name, overrides)
    return str(told.value)


def write_recipe(folder: Path, **sections: object) -> Path:
    """A recipe of the built-in world with further sections; gives its path."""
    settings = {
        "data": {"kind": "facts"},
        "retrieval": {"kind": "given", "candidates": 3},
        "selector": {"model": "m", "documents": 2},
        "generator": {"model": "m"},
        **sections,
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(settings))
    return path
