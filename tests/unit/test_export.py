"""`dro-rl export`: what it writes works without us, and its cards say what the run knows."""

from __future__ import annotations

import ast
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from dro_rl.cli import app
from dro_rl.data.facts.world import make_examples
from dro_rl.errors import UserError
from dro_rl.export import export_run
from dro_rl.export.standalone import standalone
from dro_rl.pipeline import load_pipeline
from dro_rl.recipe import Recipe
from dro_rl.recipe_file import load_recipe
from dro_rl.records import Document
from dro_rl.tracking.run_directory import RunDirectory
from tests import made_runs
from tests.models import make_llama, make_tokenizer, make_word_tokenizer
from tests.tiny import WORDS, make_example, make_recipe

pytestmark = pytest.mark.unit

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


def make_run(folder: Path, *, bytes: bool = True, chat: bool = False, **sections: Any) -> Path:
    """A run before its first iteration."""
    for seed, policy in enumerate(("selector", "generator")):
        tokenizer = make_tokenizer(chat=chat) if bytes else make_word_tokenizer(WORDS, chat=chat)
        make_llama(folder / policy, tokenizer=tokenizer, hidden=32, seed=seed)
    recipe = make_recipe(folder, tracking={"run_dir": str(folder / "run")}, **sections)
    settings = recipe.resolved()
    for policy in ("selector", "generator"):
        settings[policy] |= {"max_length": 400, "max_new_tokens": 12}
    return RunDirectory.create(Recipe.model_validate(settings)).path


def facts_run(folder: Path) -> Path:
    """The same of the demo, whose policies can read."""
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


def test_a_document_too_many_and_none_are_refused(tmp_path, monkeypatch):
    out = export_run(make_run(tmp_path), tmp_path / "out")
    spec = importlib.util.spec_from_file_location("exported_pipeline", out / "pipeline.py")
    assert spec and spec.loader
    exported = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, exported)
    spec.loader.exec_module(exported)
    pipeline = exported.Pipeline(out)
    for documents in ([], [{"text": "x"}] * 6):
        with pytest.raises(exported.UserError, match="give 1 to 5"):
            pipeline.answer("Who?", documents)
    assert pipeline.answer("Who?", [{"text": "x"}]).text  # a title may be left out


def test_the_one_file_imports_nothing_of_ours_and_names_nothing_twice():
    tree = ast.parse(standalone())
    imported = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    imported |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    assert {str(name).split(".")[0] for name in imported} <= {*sys.stdlib_module_names} | {
        "torch",
        "transformers",
    }
    named = [n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    named += [ast.unparse(n.targets[0]) for n in tree.body if isinstance(n, ast.Assign)]
    assert len(named) == len(set(named)) > 20


# --- cards ----------------------------------------------------------------------------------------


@pytest.fixture
def trained(tmp_path) -> Path:
    """Two iterations: the first halves the bound and answers all, as the second does."""
    run = tmp_path / "run"
    made_runs.make_run(run, [made_runs.question(i) for i in range(4)])
    recipe = make_recipe(
        tmp_path,
        data={"kind": "hotpotqa", "path": "hotpotqa/hotpot_qa"},
        selector={"init": "Qwen/Qwen2.5-1.5B-Instruct"},
        retrieval={"kind": "http", "url": "https://search.corp.example:8100/search"},
        tracking={"run_dir": str(run)},
    )
    RunDirectory(run).write_recipe(recipe)
    for iteration in (1, 2):
        for policy in ("selector", "generator"):
            kept = run / "checkpoints" / f"iteration-000{iteration}" / policy
            shutil.copytree(tmp_path / policy, kept)
    return run


def test_a_card_says_what_the_run_knows(trained, tmp_path):
    out = export_run(trained, tmp_path / "out")
    card = ModelCard.load(out / "selector" / "README.md")
    assert card.data.base_model == "Qwen/Qwen2.5-1.5B-Instruct"
    assert card.data.datasets == ["hotpotqa/hotpot_qa"]
    assert card.data.library_name == "transformers"
    assert card.data.license is None and "look up both" in card.text
    measured = {r.metric_type: r.metric_value for r in card.data.eval_results or []}
    assert measured["exact_match"] == 1 and measured["bound"] == pytest.approx(-1 / 3)
    assert (
        "| exact match | 0.0 [0.0, 0.0] | 100.0 [100.0, 100.0] | 100.0 [100.0, 100.0] |"
        in card.text
    )
    assert "on 4 held-out questions of `hotpotqa`" in card.text
    assert str(tmp_path) not in card.text  # folders of this machine are nobody's business
    assert "corp.example" not in card.text and "url: https://..." in card.text
    generator = ModelCard.load(out / "generator" / "README.md")
    assert generator.data.base_model is None and "a local folder, `generator`" in generator.text


def test_a_run_that_was_not_evaluated_says_so(tmp_path):
    card = ModelCard.load(
        export_run(make_run(tmp_path), tmp_path / "out") / "selector" / "README.md"
    )
    assert "Not evaluated" in card.text and card.data.eval_results is None


# --- which, and where to --------------------------------------------------------------------------


def test_the_best_iteration_is_the_first_best_by_what_the_recipe_watches(trained, tmp_path):
    def exported() -> str:
        out = tmp_path / "out"
        export_run(trained, out, "best")
        text = (out / "selector" / "README.md").read_text()
        shutil.rmtree(out)
        return text

    assert "iteration 2.\n" in exported()  # by the bound
    recipe = trained / "recipe.yaml"
    watched = recipe.read_text().replace("early_stop: null", "early_stop: {metric: em}")
    recipe.write_text(watched)
    assert "iteration 1.\n" in exported()
    shutil.rmtree(trained / "checkpoints" / "iteration-0001")
    with pytest.raises(UserError, match="iteration 1 is best by em, and its checkpoint has not"):
        exported()


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(tmp_path):
    run, out = make_run(tmp_path), tmp_path / "out"
    with pytest.raises(UserError, match="no evaluation to say which is best"):
        export_run(run, out, "best")
    with pytest.raises(UserError, match="no checkpoint of iteration 7"):
        export_run(run, out, 7)
    with pytest.raises(UserError, match="--iteration last: give a number, or best"):
        app(["export", str(run), str(out), "--iteration", "last"], standalone_mode=False)
    with pytest.raises(UserError, match="is there already"):
        export_run(run, run)
    (tmp_path / "generator" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="generator: its model could not be loaded"):
        export_run(run, out)
    text = (run / "recipe.yaml").read_text().replace("decoding: free", "decoding: retriever")
    (run / "recipe.yaml").write_text(
        text.replace("train:\n  - selector\n  - generator", "train: [generator]").replace(
            "samples: 4", "samples: 1"
        )
    )
    with pytest.raises(UserError, match="has no selector"):
        export_run(run, out)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith("out")]
