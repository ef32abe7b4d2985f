"""Runs that are ended from outside, and go on to what they would have been."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.commands import files, iterations, start
from tests.local_runs import resume, train, words
from tests.outcomes import assert_equal

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]


def test_a_resumed_run_equals_an_uninterrupted_one(straight, tmp_path):
    run = tmp_path / "run"
    train(run, "training.iterations=1").succeeded()
    told = resume(run, "training.iterations=3").succeeded()
    assert f"resumed {run} after iteration 1" in told.out
    assert_equal(run, straight)


def test_a_run_that_is_killed_again_and_again_ends_as_if_it_had_not_been(straight, tmp_path):
    """By SIGKILL at three random moments, by SIGTERM at a fourth; one command all along."""
    seed = int(os.environ.get("DRO_RL_KILL_SEED", random.randrange(10**6)))
    print(f"DRO_RL_KILL_SEED={seed}")
    moments, run = random.Random(seed), tmp_path / "run"
    iteration = sum(v for k, v in iterations(straight)[1].items() if k.startswith("time/"))
    one = words(
        run, "training.iterations=3", "training.checkpoint_seconds=0", "tracking.resume=auto"
    )
    for number in (*[signal.SIGKILL] * 3, signal.SIGTERM):
        process = start(*one)
        try:
            wait_for_a_save(run, process)
            time.sleep(moments.uniform(0, iteration / 2))
        finally:
            process.send_signal(number)
            _, told = process.communicate()
        if process.returncode == 0:
            break  # it was done before its moment came
        if number == signal.SIGTERM:
            assert process.returncode == 143, told
            assert "stopped by SIGTERM" in told and f"dro-rl train --resume {run}" in told
            assert "Traceback" not in told
    process = start(*one)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "resumed" in out or "has done its iterations" in out
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
