"""Runs that are ended from outside, and go on to what they would have been."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from signal import SIGINT, SIGTERM

import pytest

from tests.commands import ROOT, environment, files, iterations, start
from tests.local_runs import resume, train, words
from tests.outcomes import assert_equal

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def test_a_resumed_run_equals_an_uninterrupted_one(straight, tmp_path):
    run = tmp_path / "run"
    train(run, "training.iterations=1").succeeded()
    told = resume(run, "training.iterations=3").succeeded()
    assert f"resumed {run} after iteration 1" in told.out
    assert_equal(run, straight)


@pytest.mark.timeout(800)
def test_a_run_that_is_killed_again_and_again_ends_as_if_it_had_not_been(straight, tmp_path):
    """At three random moments; the same command begins it and goes on with it."""
    seed = int(os.environ.get("DRO_RL_KILL_SEED", random.randrange(10**6)))
    print(f"DRO_RL_KILL_SEED={seed}")
    moments, run = random.Random(seed), tmp_path / "run"
    iteration = sum(v for k, v in iterations(straight)[1].items() if k.startswith("time/"))
    settings = ("training.iterations=3", "training.checkpoint_seconds=0", "tracking.resume=auto")
    for _ in range(3):
        process = start(*words(run, *settings))
        try:
            wait_for_a_save(run, process)
            time.sleep(moments.uniform(0, iteration / 2))
        finally:
            process.kill()
            process.communicate()
    told = train(run, *settings).succeeded()
    assert "resumed" in told.out or "has done its iterations" in told.out
    assert_equal(run, straight)


def wait_for_a_save(run: Path, process: subprocess.Popen[str]) -> None:
    """Until there is one that was not there."""
    before = saves(run)
    while saves(run) <= before and process.poll() is None:
        time.sleep(0.005)


def saves(run: Path) -> set[str]:
    return {p.name for p in (run / "checkpoints").glob("iteration-*") if p.suffix != ".partial"}


def test_a_finished_run_has_nothing_to_resume(straight, tmp_path):
    run = Path(shutil.copytree(straight, tmp_path / "run"))
    before = files(run)
    resume(run).refused("has done its 3 iterations", "training.iterations=")
    assert files(run) == before


# What a large model takes. The name is put in its place before anything else imports it.
LOADING = """
import time
from dro_rl.policy import causal_lm

def load_model(*args, **settings):
    print("loading", flush=True)
    time.sleep(120)

causal_lm.load_model = load_model
from dro_rl.cli import main
main()
"""


def test_a_signal_while_engines_are_loading_ends_in_one_line_and_changes_nothing(
    straight, tmp_path
):
    """One run is new, the other goes on."""
    old, new = Path(shutil.copytree(straight, tmp_path / "old")), tmp_path / "new"
    before = files(tmp_path)
    going_on = ("train", "--resume", str(old), "training.iterations=4")
    cases = (
        (words(new), SIGTERM, "Nothing has been written"),
        (going_on, SIGINT, f"Iteration 3 is safe; go on with: dro-rl train --resume {old}"),
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", LOADING, *arguments],
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for arguments, _, _ in cases
    ]
    for process, (_, number, told) in zip(processes, cases, strict=True):
        assert process.stdout is not None
        assert any(line == "loading\n" for line in process.stdout)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 128 + number
        assert err == f"\nstopped by {number.name}. {told}\n"
    assert files(tmp_path) == before and not new.exists()
