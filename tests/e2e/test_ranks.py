"""A run whose learners have two ranks each, on Ray, and its continuation in one process."""

from pathlib import Path

import pytest

from tests.commands import checkpoint, dro_rl, iterations, steps
from tests.local_runs import TINY

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def train(run: Path, *overrides: str) -> None:
    place = f"tracking.run_dir={run}"
    words = (*TINY, "rollout.engine=transformers", "training.iterations=1", *overrides, place)
    dro_rl("train", "recipes/demo.yaml", *words, timeout=500).succeeded()


def test_two_ranks_train_as_one_process_which_can_go_on(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    train(one, "cluster.mode=local")
    train(two, "cluster.mode=ray", "selector.ranks=2", "generator.ranks=2")
    assert len(steps(one)) == len(steps(two)) == 2
    for wanted, found in zip(steps(one), steps(two), strict=True):
        for name in ("selector/loss", "generator/loss", "selector/logp", "generator/logp"):
            assert found[name] == pytest.approx(wanted[name], rel=1e-4, abs=1e-4), name
    (row,) = iterations(two)
    assert row["selector/engine_gap"] < 1e-4 and row["generator/engine_gap"] < 1e-4
    for policy in ("selector", "generator"):
        assert len(list((checkpoint(two, 1) / f"{policy}.learner").iterdir())) == 2

    alone = ("selector.ranks=1", "generator.ranks=1", "cluster.mode=local")
    dro_rl("train", "--resume", two, *alone, "training.iterations=2", timeout=500).succeeded()
    assert [r["iteration"] for r in iterations(two)] == [1, 2]
