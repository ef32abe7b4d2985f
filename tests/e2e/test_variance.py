"""`dro-rl variance` on a run of one iteration."""

import csv

import pytest

from tests.commands import dro_rl

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

TINY = (
    "cluster.mode=local",
    "rollout.engine=transformers",
    "data.train_questions=16",
    "data.evaluation_questions=4",
    "training.iterations=1",
    "training.questions_per_iteration=8",
    "training.batch_size=8",
    "training.tokens_per_microbatch=1200",
    "algorithm.samples=2",
    "evaluation.samples=2",
)


def test_the_variance_falls_with_m_and_a_baseline_lowers_it(tmp_path):
    run = tmp_path / "run"
    dro_rl("train", "recipes/demo.yaml", *TINY, f"tracking.run_dir={run}").succeeded()
    out = dro_rl("variance", run, "--questions", "2", "--repeats", "8").succeeded().out
    with (run / "variance.csv").open() as file:
        rows = {
            (int(r["iteration"]), r["estimator"], int(r["samples"])): float(r["gradient_variance"])
            for r in csv.DictReader(file)
        }
    assert {i for i, _, _ in rows} == {0, 1}  # the warm start and the checkpoint
    assert rows[0, "dro", 1] > rows[0, "dro", 4] > rows[0, "dro", 16] > 0
    assert rows[0, "rloo", 16] < rows[0, "reinforce without baseline", 16]
    assert "variance.csv" in out and "dro, baseline: uniform" in out


def test_a_selector_that_does_not_sample_has_no_variance(tmp_path):
    run = tmp_path / "run"
    overrides = ("algorithm={kind: independent, samples: 2}", f"tracking.run_dir={run}")
    dro_rl("train", "recipes/demo.yaml", *TINY, *overrides).succeeded()
    dro_rl("variance", run).refused("samples its own selections")
    assert not (run / "variance.csv").exists()
