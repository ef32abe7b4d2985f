"""How far the runs of a comparison are, and which may go on."""

import shutil

import pytest
from rich.console import Console as RichConsole

from dro_rl.at_work import NAME, at_work
from dro_rl.compare import run_comparison
from dro_rl.comparison.runs import Run, runs_of
from dro_rl.comparison.spec import load_comparison
from dro_rl.errors import UserError
from dro_rl.tracking.console import Console
from tests.made_comparisons import fabricate, writer

pytestmark = pytest.mark.unit


@pytest.fixture
def write(tmp_path):
    return writer(tmp_path)


@pytest.fixture
def runs(write) -> list[Run]:
    return runs_of(load_comparison(write()))


def test_a_run_is_finished_with_its_last_iterations_checkpoint(runs):
    new, half, done, _ = runs
    fabricate(half, (0.1, 0.2))
    fabricate(done)
    assert [r.state() for r in (new, half, done)] == ["new", "resumable", "finished"]


def test_a_run_without_a_checkpoint_begins_anew(runs):
    fabricate(runs[0], (0.1,))
    assert runs[0].state() == "begun"
    assert runs[0].clear(print) == "new"
    assert not runs[0].folder.exists() and runs[0].state() == "new"


def test_a_run_that_another_command_has_begun_is_not_cleared(runs):
    fabricate(runs[0], (0.1,))
    before = sorted(runs[0].folder.rglob("*"))
    with at_work(runs[0].folder, print):
        with pytest.raises(UserError, match="is at work on this run: .* place with output="):
            runs[0].clear(print)
        fabricated = [p for p in sorted(runs[0].folder.rglob("*")) if p.name != NAME]
        assert fabricated == before
    (runs[0].folder / "checkpoints" / "iteration-0001").mkdir()  # it came to a checkpoint
    assert runs[0].clear(print) == "resumable"
    assert (runs[0].folder / "checkpoints" / "iteration-0001").exists()


def test_a_comparison_refuses_a_run_begun_elsewhere_before_it_starts_any(write):
    comparison = load_comparison(write())
    mine, theirs = runs_of(comparison)[:2]
    theirs.folder.mkdir(parents=True)
    with (
        at_work(theirs.folder, print),
        pytest.raises(UserError, match="seed-0: process .* at work"),
    ):
        run_comparison(comparison, "dro-rl compare", 1, Console(RichConsole(quiet=True)))
    assert not mine.log.exists() and theirs.folder.exists()


def test_a_run_that_was_killed_before_it_had_a_recipe_begins_anew(runs):
    (runs[0].folder / "checkpoints").mkdir(parents=True)
    (runs[0].folder / "recipe.yaml.x3k").write_text("half")
    assert runs[0].state() == "begun"


def test_a_folder_of_something_else_is_refused(runs):
    runs[0].folder.mkdir(parents=True)
    (runs[0].folder / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="thesis.tex and is not a run"):
        runs[0].state()


def test_a_run_of_another_recipe_is_refused_with_the_key(runs, write):
    fabricate(runs[0])
    changed = runs_of(load_comparison(write(), ["training.weight_decay=0.5"]))
    with pytest.raises(UserError, match="training.weight_decay: 0.0.*plain now has 0.5") as told:
        changed[0].state()
    assert str(runs[0].folder) in str(told.value) and "output=" in str(told.value)


def test_a_moved_comparison_goes_on(runs, write, tmp_path):
    fabricate(runs[0])
    shutil.move(tmp_path / "out", tmp_path / "moved")
    moved = runs_of(load_comparison(write(), [f"output={tmp_path / 'moved'}"]))
    assert moved[0].state() == "finished"


@pytest.mark.parametrize(
    ("ems", "state"),
    [
        ((0.5, 0.4), "finished"),
        ((0.5, 0.6), "resumable"),
        ((0.5,), "begun"),
        ((0.5, None, 0.6, None), "resumable"),
        ((0.5, None, 0.6, None, 0.6), "finished"),
    ],
)
def test_a_run_that_stopped_early_is_finished(write, ems, state):
    settings = {"training": {"early_stop": {"metric": "em", "patience": 1}, "iterations": 5}}
    run = runs_of(load_comparison(write(settings=settings)))[0]
    fabricate(run, ems)
    assert run.state() == state


def test_an_evaluation_without_its_checkpoint_stops_nothing(write):
    """The run was killed between the two, and evaluates again."""
    settings = {"training": {"early_stop": {"metric": "em", "patience": 1}, "iterations": 9}}
    run = runs_of(load_comparison(write(settings=settings)))[0]
    fabricate(run, (0.5, None, 0.6, None, 0.6))
    (run.folder / "checkpoints" / "iteration-0004").rmdir()
    assert run.state() == "resumable"
