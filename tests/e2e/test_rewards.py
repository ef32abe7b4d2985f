"""Rewards from the command line: served over HTTP, and what a frozen generator makes of a selection
is remembered, also over a resume."""

import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands import dro_rl, evaluation, iterations, rollouts, start

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

LOCAL = ("cluster.mode=local", "rollout.engine=transformers")
TINY = (
    "data.train_questions=16",
    "data.evaluation_questions=8",
    "training.questions_per_iteration=16",
    "training.batch_size=8",
    "algorithm.samples=4",
    "evaluation.samples=4",
)


def train(run: Path, *overrides: str):
    words = (*LOCAL, *TINY, *overrides, f"tracking.run_dir={run}")
    return dro_rl("train", "recipes/demo.yaml", *words).succeeded()


def log_rewards(run: Path, iteration: int) -> list[float]:
    return [row["log_reward"] for row in rollouts(run, iteration)]


@pytest.fixture
def served() -> Iterator[str]:
    """The address that `dro-rl reward serve` prints."""
    process = start("reward", "serve", "{use: rewards/f1.py, beta: 2}", "--port", "0")
    assert process.stdout is not None
    watchdog = threading.Timer(60, process.kill)
    watchdog.start()
    try:
        lines = [process.stdout.readline(), process.stdout.readline()]
        watchdog.cancel()
        assert lines[0] == "F1: scale linear, needs answer\n", process.communicate()
        found = re.match(r"reward: (http://127\.0\.0\.1:\d+/score)", lines[1])
        assert found, lines
        yield found[1]
    finally:
        watchdog.cancel()
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (0, "")


def test_a_run_with_a_served_reward_is_the_run_with_the_reward_itself(served, tmp_path):
    train(tmp_path / "here", "reward={use: rewards/f1.py, beta: 2}", "training.iterations=1")
    train(tmp_path / "there", f"reward={served}", "training.iterations=1")
    assert rollouts(tmp_path / "here", 1) == rollouts(tmp_path / "there", 1)
    assert len(set(log_rewards(tmp_path / "here", 1))) > 2


FROZEN = ("algorithm.train=[selector]", "selector.learning_rate=3.0e-4")


def test_a_frozen_generator_is_asked_once_and_a_resumed_run_remembers(tmp_path):
    """The questions come again in every iteration, with their candidates in another order."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(whole, *FROZEN, "training.iterations=3")
    asked = [row.get("tokens/reward", 0) for row in iterations(whole)]
    assert asked[2] < 0.9 * asked[0]
    train(parts, *FROZEN, "training.iterations=1")
    dro_rl("train", "--resume", parts, "training.iterations=3").succeeded()
    for i in (2, 3):
        assert log_rewards(parts, i) == log_rewards(whole, i)
        assert evaluation(parts, i)["bound"] == evaluation(whole, i)["bound"]
    assert [row.get("tokens/reward", 0) for row in iterations(parts)] == asked
