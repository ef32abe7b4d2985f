"""What `dro-rl export` writes answers in a process without us as the run does here."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dro_rl.data.facts.world import make_examples
from dro_rl.export import export_run
from dro_rl.pipeline import load_pipeline
from dro_rl.recipe_file import load_recipe
from dro_rl.records import Document
from dro_rl.tracking.run_directory import RunDirectory
from tests.exported_runs import make_run
from tests.tiny import make_example

pytestmark = pytest.mark.integration

LONG = "Lake Orsa lies in the north of Tarn. Its keeper </s> is Mila Brandt. " * 3
DOCUMENTS = [
    Document(f"Lake {i}", f"Keeper {i} of Lake {i + 1}. " * (i % 3 + 1)) for i in range(12)
]
CASES: dict[str, dict[str, Any]] = {
    # name: the tokenizer, whether it chats, the recipe's changes, the documents to select from
    "words": {"bytes": False, "chat": False, "documents": make_example(0).candidates},
    "chat": {"chat": True, "documents": [Document(d.title, d.text + LONG) for d in DOCUMENTS[:5]]},
    "distinct": {
        "documents": DOCUMENTS,
        "retrieval": {"candidates": 12},
        "rollout": {"decoding": "distinct"},
    },
    "independent": {
        "documents": DOCUMENTS,
        "retrieval": {"candidates": 12},
        "algorithm": {"kind": "independent", "samples": 4},
    },
}
FACTS = make_examples(4, seed=0, split="evaluation")
QUESTIONS = [f"Name the {name} hometown." for name in ("Kovac", "Silva", "Brandt", "Keld")]
ALONE = """
import importlib.abc, json, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] == "dro_rl":
            raise ImportError("this is to work without dro_rl")

sys.meta_path.insert(0, Refuse())
found = {}
for folder, asked in json.load(sys.stdin).items():
    sys.path.insert(0, folder)
    sys.modules.pop("pipeline", None)
    from pipeline import Pipeline
    pipeline = Pipeline(folder)
    found[folder] = []
    for question, documents in asked:
        answer = pipeline.answer(question, documents)
        chosen = [[d.title, d.text] for d in answer.documents]
        found[folder].append([answer.text, answer.selection, list(answer.places), chosen])
    sys.path.remove(folder)
assert "dro_rl" not in sys.modules
print(json.dumps(found))
"""


def facts_run(folder: Path) -> Path:
    """A run of the demo before its first iteration, whose policies can read."""
    here = ("cluster.mode=local", f"tracking.run_dir={folder / 'run'}")
    return RunDirectory.create(load_recipe("recipes/demo.yaml", here)).path


def test_what_is_exported_answers_without_us_as_it_does_with_us(tmp_path):
    asked: dict[str, list] = {}
    ours: dict[str, list] = {}

    def add(name: str, run: Path, questions: list[tuple[str, Sequence[Document]]]) -> None:
        out, pipeline = str(export_run(run, tmp_path / name)), load_pipeline(run)
        answers = [pipeline.answer(question, documents) for question, documents in questions]
        asked[out] = [
            [question, [{"title": d.title, "text": d.text} for d in answer.candidates]]
            for (question, _), answer in zip(questions, answers, strict=True)
        ]
        ours[out] = [
            [a.text, a.selection, list(a.places), [[d.title, d.text] for d in a.documents]]
            for a in answers
        ]

    add("facts", facts_run(tmp_path / "demo"), [(e.question, e.candidates) for e in FACTS])
    for name, case in CASES.items():
        changes = {key: value for key, value in case.items() if key != "documents"}
        run = make_run(tmp_path / f"{name}-run", **changes)
        add(name, run, [(question, case["documents"]) for question in QUESTIONS])
    told = subprocess.run(
        [sys.executable, "-I", "-c", ALONE],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout) == ours
    assert len({selection for _, selection, _, _ in ours[str(tmp_path / "facts")]}) > 1
    for name in ("distinct", "independent"):
        assert all(len(places) == 2 for _, _, places, _ in ours[str(tmp_path / name)])
