"""What is computed when: rewards while learning, rollouts ahead, small weights left out."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from dro_rl.learner import Learner
from dro_rl.questions import load_questions
from dro_rl.recipe_file import load_recipe
from dro_rl.tracking.console import Console
from tests.commands import Result, checkpoint, dro_rl, evaluation, metrics, rollouts, steps
from tests.models import token_logps

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

TINY = (
    "cluster.mode=local",
    "rollout.engine=transformers",
    "data.train_questions=64",
    "data.evaluation_questions=8",
    "training.questions_per_iteration=16",
    "training.schedule=constant",
    "algorithm.samples=4",
    "evaluation.samples=4",
)


def train(run: Path, *overrides: str) -> Result:
    return dro_rl("train", "recipes/demo.yaml", *TINY, *overrides, f"tracking.run_dir={run}")


def times(run: Path) -> set[str]:
    """Stages of the iterations."""
    return {k for row in metrics(run) for k in row if k.startswith("time/")}


def test_fresh_and_frozen_weights_agree_in_an_iteration_of_one_step(tmp_path):
    """Then nothing is learned between a reward and its use; no stage scores by itself."""
    options = ("training.batch_size=16", "training.iterations=2")
    for kind in ("fresh", "frozen"):
        train(tmp_path / kind, f"training.weights={kind}", *options).succeeded()
    assert times(tmp_path / "frozen") - times(tmp_path / "fresh") == {"time/reward"}
    for iteration in (1, 2):
        fresh, frozen = (rollouts(tmp_path / k, iteration) for k in ("fresh", "frozen"))
        assert [r["selection"] for r in fresh] == [r["selection"] for r in frozen]
        for name in ("log_reward", "selector_weight", "generator_weight"):
            found, wanted = ([r[name] for r in rows] for rows in (fresh, frozen))
            assert found == pytest.approx(wanted, abs=1e-3)
    bounds = [evaluation(tmp_path / k, 2)["bound"] for k in ("fresh", "frozen")]
    assert bounds[0] == pytest.approx(bounds[1], abs=1e-3)
    assert bounds[0] > evaluation(tmp_path / "fresh", 0)["bound"]


def test_fresh_weights_are_the_generators_of_that_step(tmp_path):
    """Of the second step they are not what the first step's generator would have given."""
    options = ("training.batch_size=8", "training.iterations=1")
    for kind in ("fresh", "frozen"):
        train(tmp_path / kind, f"training.weights={kind}", *options).succeeded()
    fresh, frozen = (rollouts(tmp_path / k, 1) for k in ("fresh", "frozen"))
    apart = [abs(a["log_reward"] - b["log_reward"]) for a, b in zip(fresh, frozen, strict=True)]
    first, second = apart[: 8 * 4], apart[8 * 4 :]
    assert max(first) < 1e-3 < 0.01 < max(second)


@pytest.mark.parametrize(
    "override",
    ["training.epochs=2", "reward=rewards/exact_match.py", "algorithm={kind: reinforce}"],
)
def test_weights_that_must_wait_are_frozen(tmp_path, override):
    options = ("training.batch_size=8", "training.iterations=1", override)
    train(tmp_path / "run", *options).succeeded()
    assert "time/reward" in times(tmp_path / "run")


@pytest.fixture(scope="module")
def ahead(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("ahead") / "run"
    train(run, "rollout.overlap=1", "training.batch_size=8", "training.iterations=3").succeeded()
    return run


def test_rollouts_ahead_are_of_the_iteration_before(ahead):
    versions = [{row["version"] for row in rollouts(ahead, i)} for i in (1, 2, 3)]
    assert versions == [{0}, {0}, {1}]


def test_weights_of_rollouts_ahead_are_corrected(ahead):
    """w_i is proportional to r_i p_s(z_i)/q(z_i): p_s is the selector that the iteration starts
    with, q the one before it."""
    recipe = load_recipe(str(ahead / "recipe.yaml"))
    questions = {e.id: e for e in load_questions(recipe, Console()).train}
    learner = Learner(recipe, "selector", str(checkpoint(ahead, 2) / "selector"), 1, 1e-3)
    learner.model.eval()
    groups: dict[str, list[dict]] = {}
    for row in rollouts(ahead, 3):
        groups.setdefault(row["example"], []).append(row)
    moved = 0.0
    for name, group in groups.items():
        if any(row["malformed"] for row in group):
            continue  # its text need not encode to what was sampled
        example = questions[name]
        prompt = learner.writer.select(example.question, example.candidates, 2).token_ids
        scores = []
        for row in group:
            ids = learner.writer.completion(row["selection"])
            ratio = sum(token_logps(learner.model, prompt, ids)) - row["logq"]
            moved = max(moved, abs(ratio))
            scores.append(row["log_reward"] + ratio)
        weights = [math.exp(s - max(scores)) for s in scores]
        expected = [w / sum(weights) for w in weights]
        assert [row["generator_weight"] for row in group] == pytest.approx(expected, abs=1e-3)
    assert moved > 0.01


def test_rollouts_ahead_cannot_serve_an_algorithm_that_makes_its_own(tmp_path):
    result = train(tmp_path / "run", "rollout.overlap=1", "algorithm={kind: independent}")
    result.refused("rollout.overlap: algorithm.kind: independent needs the selections")


def test_small_weights_are_left_out_and_counted(tmp_path):
    """What is left out is told; fewer tokens go through the generator."""
    options = ("training.batch_size=16", "training.iterations=1", "training.weights=frozen")
    for name, prune in (("all", 0.0), ("pruned", 0.05)):
        train(tmp_path / name, f"generator.prune={prune}", *options).succeeded()
    (every,), (pruned,) = (steps(tmp_path / name) for name in ("all", "pruned"))
    assert "rollout/pruned" not in every
    groups: dict[str, dict[tuple, float]] = {}
    for row in rollouts(tmp_path / "pruned", 1):
        lists = groups.setdefault(row["example"], {})
        key = tuple(row["documents"])
        lists[key] = lists.get(key, 0.0) + row["generator_weight"]
    lost = [sum(w for w in lists.values() if w < 0.05) for lists in groups.values()]
    assert pruned["rollout/pruned"] == pytest.approx(sum(lost) / len(lost), abs=1e-6)
    assert 0 < pruned["rollout/pruned"] < 0.1
    assert pruned["generator/tokens"] < 0.9 * every["generator/tokens"]
    assert pruned["selector/tokens"] == every["selector/tokens"]


def test_what_is_sampled_ahead_is_counted_in_the_iteration_that_samples_it(ahead):
    """The first samples for two iterations, the last for none."""
    rows = [row for row in metrics(ahead) if "time/learn" in row]
    assert ["rollout/prefix_cache_hits" in row for row in rows] == [True, True, False]
    assert [row.get("time/rollout", 0) > 0 for row in rows] == [True, True, False]
    for row in rows:
        assert sum(v for k, v in row.items() if k.startswith("share/")) == pytest.approx(1)
