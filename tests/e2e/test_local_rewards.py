"""Rewards of a run in one process: others, and such as fail."""

import math
import re
import shutil
from pathlib import Path

import pytest

from tests.commands import (
    Result,
    checkpoint,
    rollouts,
)
from tests.local_runs import resume, train

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]


@pytest.mark.parametrize("name", ["exact_match", "f1"])
def test_another_reward_is_one_override(tmp_path, name):
    run = tmp_path / "run"
    train(run, f"reward=rewards/{name}.py", "training.iterations=1").succeeded()
    rewards = [math.exp(row["log_reward"]) for row in rollouts(run, 1)]
    if name == "exact_match":
        assert set(rewards) == {0, 1}
    else:
        assert max(rewards) == 1 and any(0 < r < 1 for r in rewards)
    for row in rollouts(run, 1):
        if row["log_reward"] == -math.inf:
            assert row["generator_weight"] == 0


FAILING = """
import os
from pathlib import Path

from dro_rl.reward import Reward


class Picky(Reward):
    needs = ("likelihood",)

    def score(self, outcomes):
        Path(__file__).with_name("pid").write_text(str(os.getpid()))
        raise ArithmeticError("too picky")
"""


@pytest.fixture(scope="module")
def failed(tmp_path_factory) -> tuple[Path, Result]:
    folder = tmp_path_factory.mktemp("failing")
    (folder / "picky.py").write_text(FAILING)
    return folder, train(folder / "run", f"reward={folder / 'picky.py'}")


def test_a_reward_that_raises_shows_its_own_traceback(failed):
    folder, result = failed
    assert result.code not in (0, 2)
    place = re.escape(str(folder / "picky.py"))
    assert re.search(rf'File "{place}", line \d+, in score', result.err)
    assert result.err.rstrip().endswith("ArithmeticError: too picky")
    assert not checkpoint(folder / "run", 1).exists()


def test_rewards_run_in_the_commands_own_process_for_breakpoints(failed):
    folder, result = failed
    assert int((folder / "pid").read_text()) == result.pid


def test_a_run_continues_once_its_reward_is_mended(failed, tmp_path):
    folder, _ = failed
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    for path in (copy / "run" / "recipe.yaml", copy / "picky.py"):
        text = path.read_text().replace(str(folder), str(copy))
        path.write_text(
            text.replace('raise ArithmeticError("too picky")', "return [2.0] * len(outcomes)")
        )
    resume(copy / "run", "training.iterations=1").succeeded()
    assert {row["log_reward"] for row in rollouts(copy / "run", 1)} == {math.log(2)}
    assert checkpoint(copy / "run", 1).is_dir()
