"""A valid tiny experiment in a folder, for tests that break one thing of it."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import yaml

from dro_rl.recipe_file import load_recipe
from dro_rl.tracking.run_directory import RunDirectory
from tests.models import make_llama

_MADE = TemporaryDirectory(prefix="dro-rl-tests-")


@dataclass
class Place:
    """A folder with a valid tiny experiment in it; tests break one thing each."""

    folder: Path

    @property
    def recipe(self) -> str:
        return str(self.folder / "recipe.yaml")

    @property
    def data(self) -> Path:
        return self.folder / "questions.jsonl"

    @property
    def run(self) -> Path:
        return self.folder / "runs" / "one"

    def files(self) -> set[str]:
        return {str(p.relative_to(self.folder)) for p in self.folder.rglob("*")}

    def start_run(self) -> None:
        """A run that was interrupted before its first checkpoint."""
        RunDirectory.create(load_recipe(self.recipe))

    def write_questions(self, rows: list[dict | str]) -> None:
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        self.data.write_text("\n".join(lines) + "\n")


def question(number: int, **changes) -> dict:
    documents = [
        {"title": f"Lake {i}", "text": f"Keeper {number + i}.", "is_gold": i == 0} for i in range(4)
    ]
    row = {
        "id": f"q{number}",
        "question": f"Who keeps lake {number}?",
        "answers": [f"Keeper {number}"],
        "documents": documents,
    }
    return row | changes


QUESTIONS = [question(i) for i in range(6)]


@cache
def _model() -> Path:
    """Made once, and copied to where a test wants one."""
    folder = Path(_MADE.name)
    make_llama(folder, hidden=32, layers=1, context=256)
    return folder


def make_place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.delenv("DRO_RL_OVERRIDES", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    place = Place(folder)
    place.folder.mkdir()
    shutil.copytree(_model(), place.folder / "model")
    place.write_questions(list(QUESTIONS))
    policy = {
        "model": str(place.folder / "model"),
        "dtype": "float32",
        "max_length": 256,
        "max_new_tokens": 16,
        "learning_rate": 1e-3,
    }
    settings = {
        "data": {"kind": "jsonl", "path": str(place.data), "evaluation_questions": 2},
        "retrieval": {"kind": "given", "candidates": 4},
        "selector": {**policy, "documents": 2},
        "generator": policy,
        "rollout": {"engine": "transformers"},
        "algorithm": {"samples": 2},
        "training": {"iterations": 1, "batch_size": 4},
        "evaluation": {"samples": 2},
        "tracking": {"run_dir": str(place.run)},
        "cluster": {"mode": "local"},
    }
    Path(place.recipe).write_text(yaml.safe_dump(settings))
    return place
