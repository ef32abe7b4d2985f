"""`dro-rl watch` reads a run's directory alone: begun or not, at work, finished, killed."""

from __future__ import annotations

import io
import os
import signal
import time
from pathlib import Path

import pytest
from rich.console import Console as RichConsole

from dro_rl.errors import UserError
from dro_rl.tracking import watch_screen
from dro_rl.tracking.console import Console
from dro_rl.tracking.run_directory import RunDirectory
from dro_rl.tracking.watch_screen import curve, watch
from dro_rl.tracking.watching import Status, Watcher
from tests.commands import start
from tests.made_runs import make_run, question, recipe

pytestmark = pytest.mark.unit

QUESTIONS = [question(0, "Where was \x1b]0;it\x07 [bold]made[/bold]?"), question(1)]


def checkpointed(run: RunDirectory, *iterations: int) -> None:
    for iteration in iterations:
        (run.path / "checkpoints" / f"iteration-{iteration:04d}").mkdir()


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    """Two iterations of five are done."""
    run = make_run(tmp_path / "run", QUESTIONS)
    checkpointed(run, 1, 2)
    return run


@pytest.fixture
def finished(run) -> RunDirectory:
    run.write_recipe(recipe(run.path, training={"iterations": 2}))
    return run


def look(run: RunDirectory) -> Status:
    status = Watcher(run.path).look()
    assert status is not None
    return status


def shown(path: Path, terminal: bool) -> str:
    file = io.StringIO()
    rich = RichConsole(
        file=file, width=120, height=60, force_terminal=terminal, highlight=False, soft_wrap=True
    )
    watch(path, Console(rich))
    return file.getvalue()


# --- stages ---------------------------------------------------------------------------------------


def test_the_stages_of_a_run(tmp_path):
    path = tmp_path / "run"
    watcher = Watcher(path)
    assert watcher.look() is None
    run = RunDirectory.create(
        recipe(path, training={"iterations": 2, "questions_per_iteration": 8, "batch_size": 4})
    )

    def stage() -> str:
        status = watcher.look()
        assert status is not None
        return status.stage

    assert stage() == "starting: data, engines, evaluation of the warm start"
    run.write_evaluation("iteration-0000", {"iteration": 0, "questions": 0}, [])
    assert stage() == "iteration 1 of 2: sampling selections"
    (path / "checkpoints" / "iteration-0001-part-0001").mkdir()
    assert stage() == "iteration 1 of 2: rewards and learning, 0 of 2 steps taken"
    run.append_metrics({"iteration": 1, "step": 1})
    assert stage() == "iteration 1 of 2: rewards and learning, 1 of 2 steps taken"
    status = watcher.look()
    assert status is not None and status.share == 0.25 and status.seconds_left is None
    run.append_metrics({"iteration": 1, "step": 2})
    assert stage() == "iteration 1 of 2: evaluating"
    run.write_evaluation("iteration-0001", {"iteration": 1, "questions": 0}, [])
    assert stage() == "iteration 1 of 2: writing the checkpoint"
    run.append_metrics({"iteration": 1, "time/learn": 6.0, "time/rollout": 4.0})
    checkpointed(run, 1)
    status = watcher.look()
    assert status is not None and status.stage == "iteration 2 of 2: sampling selections"
    assert status.share == 0.5 and status.seconds_left == 10.0


def test_the_stages_of_a_run_that_is_not_always_evaluated(tmp_path):
    settings = {"iterations": 5, "questions_per_iteration": 8, "batch_size": 8}
    run = RunDirectory.create(recipe(tmp_path / "run", training=settings, evaluation={"every": 3}))
    figures = {"questions": 0, "seconds": 100.0}
    run.write_evaluation("iteration-0000", {"iteration": 0, **figures}, [])
    told, left = [], []
    for iteration in (1, 2, 3, 4, 5):
        run.append_metrics({"iteration": iteration, "step": iteration})
        told.append(look(run).stage)
        if iteration in (3, 5):
            run.write_evaluation(
                f"iteration-{iteration:04d}", {"iteration": iteration, **figures}, []
            )
            assert look(run).stage == f"iteration {iteration} of 5: writing the checkpoint"
        evaluating = {"time/evaluate": 100.0} if iteration in (3, 5) else {}
        run.append_metrics({"iteration": iteration, "time/learn": 10.0, **evaluating})
        checkpointed(run, iteration)
        left.append(look(run).seconds_left)
    assert [stage.partition(": ")[2] for stage in told] == [
        *("writing the checkpoint", "writing the checkpoint", "evaluating"),
        *("writing the checkpoint", "evaluating"),
    ]
    # 4, 3, 2, 1 iterations to learn from; evaluations of iterations 3 and 5
    assert left == pytest.approx([240.0, 230.0, 120.0, 110.0, None])
    assert [e["iteration"] for e in look(run).evaluations] == [0, 3, 5]
    assert look(run).stage == "finished after iteration 5"


def test_an_evaluation_is_no_unusual_silence(run):
    summary = run.evaluations()[-1]
    run.write_evaluation("iteration-0002", {**summary, "seconds": 200.0}, [])
    for place in (run.path, *run.path.iterdir()):
        os.utime(place, (time.time() - 400,) * 2)
    assert not look(run).unusually_silent  # though no other stage took more than 3 s


def test_a_run_that_stopped_early_is_finished(run):
    assert not look(run).finished
    run.write_recipe(
        recipe(run.path, training={"early_stop": {"metric": "gold_recall", "patience": 1}})
    )
    assert look(run).finished  # the second iteration found no more than the first
    assert look(run).stage == "finished after iteration 2, stopped early"


def test_it_stops_early_with_the_checkpoint_of_the_evaluation_that_says_so(tmp_path):
    run = make_run(tmp_path / "run", QUESTIONS, iterations=4, every=2)
    early = {"metric": "gold_recall", "patience": 1}
    settings = {"iterations": 9, "early_stop": early}
    run.write_recipe(recipe(run.path, training=settings, evaluation={"every": 2}))
    checkpointed(run, 1, 2, 3)
    assert look(run).stage == "iteration 4 of 9: writing the checkpoint"
    checkpointed(run, 4)
    assert look(run).stage == "finished after iteration 4, stopped early"


def test_an_evaluation_that_was_asked_for_later_stops_nothing(tmp_path):
    run = make_run(tmp_path / "run", QUESTIONS, iterations=3, every=2)  # with 0, 2 and 3
    early = {"metric": "gold_recall", "patience": 1}
    settings = {"iterations": 9, "early_stop": early}
    run.write_recipe(recipe(run.path, training=settings, evaluation={"every": 2}))
    checkpointed(run, 1, 2, 3)
    assert look(run).stage == "iteration 4 of 9: sampling selections"


def test_metrics_are_read_on_and_anew_after_a_resume(run):
    watcher = Watcher(run.path)

    def steps() -> list[int]:
        status = watcher.look()
        assert status is not None
        return [row["step"] for row in status.steps]

    metrics = run.path / "metrics.jsonl"
    before = [row["step"] for row in run.steps()]
    assert steps() == before
    with metrics.open("r+b") as file:  # what has been read is not looked at again
        file.write(b"X")
    with metrics.open("ab") as file:
        file.write(b'{"iteration": 3, "step": 3}\n{"iteration": 3, "st')
        file.flush()
        assert steps() == [*before, 3]
        file.write(b'ep": 4}\n')
    assert steps() == [*before, 3, 4]
    with metrics.open("r+b") as file:
        file.write(b"{")
    run.drop_after(2)
    assert steps() == before
    run.append_metrics({"iteration": 3, "step": 3})
    assert steps() == [*before, 3] == [row["step"] for row in run.steps()]
    metrics.write_text("torn", encoding="utf-8")
    assert steps() == []
    metrics.unlink()
    assert steps() == []


def test_silence_is_told_when_it_is_longer_than_usual(run):
    assert not look(run).unusually_silent
    for place in (run.path, *run.path.iterdir()):
        os.utime(place, (time.time() - 100,) * 2)
    status = look(run)
    assert 95 < status.silent < 200 and status.unusually_silent  # its longest stage took 3 s
    assert "sampling" in status.stage


# --- lines and the screen -------------------------------------------------------------------------


def test_a_finished_run_is_told_in_plain_lines(finished):
    told = shown(finished.path, terminal=False)
    assert "\x1b" not in told and "\x07" not in told
    assert "finished after iteration 2" in told
    assert "iteration 2: EM 0.0 -> 100.0" in told and "warm start" in told
    assert "(reference: Lyon)" in told and "now        'Lyon' from no" in told


def test_a_finished_run_on_a_terminal(finished, monkeypatch):
    monkeypatch.setattr(watch_screen.time, "time", lambda: 0.0)  # the first question's minute
    told = shown(finished.path, terminal=True)
    assert "finished after iteration 2" in told and "selector/loss" in told
    assert "learn 3.0 s (200 tok/s)" not in told and "learn 3.0 s" in told
    assert "[bold]made[/bold]?" in told and "\x1b]0;" not in told and "\x07" not in told


def test_a_killed_run_says_how_to_go_on(run, monkeypatch):
    for place in (run.path, *run.path.iterdir()):
        os.utime(place, (time.time() - 1000,) * 2)

    def stop(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(watch_screen.time, "sleep", stop)
    for terminal in (False, True):
        file = io.StringIO()
        rich = RichConsole(file=file, width=200, height=60, force_terminal=terminal)
        with pytest.raises(KeyboardInterrupt):
            watch(run.path, Console(rich))
        assert f"dro-rl train --resume {run.path}" in file.getvalue()


def test_a_file_is_refused_and_so_is_what_is_damaged(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(watch_screen.time, "sleep", lambda seconds: None)
    with pytest.raises(UserError, match="is a file: give a run directory"):
        shown(finished.path / "recipe.yaml", terminal=False)
    (finished.path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="metrics.jsonl, line 1: is damaged"):
        shown(finished.path, terminal=False)


def test_curves():
    assert curve([0.0, 1.0]) == "▁█"
    assert curve([2.0, 2.0, 2.0]) == "▁▁▁"
    assert len(curve([float(i) for i in range(1000)])) <= 16


# --- the command ----------------------------------------------------------------------------------


def test_ctrl_c_ends_it_quietly(tmp_path):
    process = start("watch", tmp_path / "nothing yet")
    assert process.stdout is not None
    first = process.stdout.readline()
    assert "no run here yet; waiting for one to begin" in first
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "")
