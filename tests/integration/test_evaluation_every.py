"""A run of three iterations of which the second and the last are evaluated, and what reads it."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path

import pytest
from rich.console import Console as RichConsole

from dro_rl.comparison.runs import Run, read_result
from dro_rl.export import export_run
from dro_rl.inference import evaluate_run
from dro_rl.recipe_file import load_recipe
from dro_rl.tracking.console import Console
from dro_rl.tracking.run_directory import RunDirectory
from dro_rl.tracking.watch_screen import watch
from tests.commands import files, iterations, metrics
from tests.faults import run_of

pytestmark = pytest.mark.integration

LOCAL = ("cluster.mode=local", "training.iterations=3", "training.epochs=2")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, str]:
    """The run, and what was said of it."""
    return run_of(tmp_path_factory.mktemp("some") / "run", *LOCAL, "evaluation.every=2")


def test_the_start_every_second_and_the_last_are_evaluated(trained):
    path, said = trained
    assert [e["iteration"] for e in RunDirectory(path).evaluations()] == [0, 2, 3]
    have = [{k.split("/")[0] for k in row} >= {"evaluation"} for row in iterations(path)]
    assert have == [False, True, True]
    assert ["time/evaluate" in row for row in iterations(path)] == have
    assert re.findall(r"^iteration (\d): EM", said, re.M) == ["2", "3"]
    assert all(row["selector/engine_gap"] < 1e-4 for row in iterations(path))  # of every iteration


def test_what_is_learned_does_not_depend_on_it(trained, tmp_path):
    """Policies bit by bit, the figures of the same iterations, and every other metric."""
    path, _ = trained
    always, _ = run_of(tmp_path / "always", *LOCAL)
    for name, content in files(path / "checkpoints").items():
        if name.endswith("model.safetensors"):
            assert content == (always / "checkpoints" / name).read_bytes(), name
    for iteration in (0, 2, 3):
        name = f"evaluation/iteration-{iteration:04d}.jsonl"
        assert (path / name).read_text() == (always / name).read_text()
    untimed = ("selector/", "generator/", "rollout/", "reward/", "tokens/learn", "tokens/rollout")
    ours, theirs = (
        [{k: v for k, v in row.items() if k.startswith(untimed)} for row in metrics(run)]
        for run in (path, always)
    )
    assert ours == theirs
    # An iteration that was passed over can be evaluated afterwards, to the same figures.
    copy = Path(shutil.copytree(path, tmp_path / "copy"))
    recipe = load_recipe(str(copy / "recipe.yaml"))
    evaluate_run(copy, recipe, None, 1, Console(RichConsole(quiet=True)))
    found = RunDirectory(copy).evaluations()
    assert [e["iteration"] for e in found] == [0, 1, 2, 3]
    wanted = json.loads((always / "evaluation" / "iteration-0001.json").read_text())
    assert {**found[1], "seconds": 0} == {**wanted, "seconds": 0}


def test_all_that_reads_a_run_names_the_right_iterations(trained, tmp_path):
    path, _ = trained
    told = io.StringIO()
    watch(path, Console(RichConsole(file=told, width=120, soft_wrap=True)))
    assert re.findall(r"^iteration (\d): EM", told.getvalue(), re.M) == ["2", "3"]
    assert "finished after iteration 3" in told.getvalue()
    result = read_result(Run("arm", 0, load_recipe(str(path / "recipe.yaml")), path))
    assert result.selections == (0, 32, 48)  # 8 questions of 2 selections an iteration
    assert result.seconds[0] == 0 < result.seconds[1] < result.seconds[2]
    assert result.final["iteration"] == 3
    last = (path / "evaluation" / "iteration-0003.jsonl").read_text().splitlines()
    assert [*result.questions.values()] == [json.loads(line) for line in last]
    out = export_run(path, tmp_path / "out", 1)
    assert "Not evaluated" in (out / "selector" / "README.md").read_text()
    assert (path / "report.html").is_file()
