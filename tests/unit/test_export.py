"""`dro-rl export`: what it writes works without us, and its cards say what the run knows."""

from __future__ import annotations

import ast
import importlib.util
import shutil
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from dro_rl.cli import app
from dro_rl.errors import UserError
from dro_rl.export import export_run
from dro_rl.export.standalone import standalone
from dro_rl.tracking.run_directory import RunDirectory
from tests import made_runs
from tests.exported_runs import make_run
from tests.tiny import make_recipe

pytestmark = pytest.mark.unit


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


def test_gaps_between_evaluations(trained, tmp_path):
    """A card has no figures of another iteration, and the best is one that was evaluated."""
    for suffix in ("json", "jsonl"):
        (trained / "evaluation" / f"iteration-0001.{suffix}").unlink()
    export_run(trained, tmp_path / "one", 1)
    card = ModelCard.load(tmp_path / "one" / "selector" / "README.md")
    assert "Not evaluated" in card.text and card.data.eval_results is None
    export_run(trained, tmp_path / "best", "best")
    text = (tmp_path / "best" / "selector" / "README.md").read_text()
    assert "iteration 2.\n" in text and "| warm start | iteration 2 |" in text


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
