"""`algorithm.kind: trl_grpo`: TRL's trainer makes a run like any other."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dro_rl.prompts import read_selection
from tests.commands import ROOT, Result, checkpoint, dro_rl, evaluation, iterations, rollouts, steps

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

TINY = (
    "cluster.mode=local",
    "rollout.engine=transformers",
    "data.train_questions=64",
    "data.evaluation_questions=8",
    "training.iterations=2",
    "training.questions_per_iteration=16",
    "training.batch_size=8",
    "training.tokens_per_microbatch=3100",
    "training.warmup_steps=2",
    "algorithm.kind=trl_grpo",
    "algorithm.samples=4",
    "evaluation.samples=4",
    "reward=rewards/f1.py",
)
BUILTIN = ROOT / "dro_rl" / "builtin"


def train(run: Path, *overrides: str) -> Result:
    return dro_rl("train", "recipes/demo.yaml", *TINY, *overrides, f"tracking.run_dir={run}")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> tuple[Path, Result]:
    run = tmp_path_factory.mktemp("trl") / "run"
    return run, train(run).succeeded()


def test_the_run_directory_is_that_of_any_run(told):
    run, _ = told
    assert [evaluation(run, i)["iteration"] for i in range(3)] == [0, 1, 2]
    assert [(row["iteration"], row["step"]) for row in steps(run)] == [
        (1, 1),
        (1, 2),
        (2, 3),
        (2, 4),
    ]
    for row in steps(run):
        assert {"selector/loss", "selector/clipped", "trl/entropy", "rollout/entropy"} <= row.keys()
    assert "trl/reward" in steps(run)[0]
    assert [row["selector/learning_rate"] for row in steps(run)][:2] == pytest.approx([5e-4, 1e-3])
    for i, row in enumerate(iterations(run), 1):
        assert row["evaluation/em"] == evaluation(run, i)["em"]
        assert row["selector/engine_gap"] <= 1e-4
        assert {"time/rollout", "time/answer", "time/reward", "time/learn"} <= row.keys()
    assert (run / "recipe.yaml").is_file()


def test_the_selector_alone_learns(told):
    run, _ = told
    before, one, two = (
        weights(folder)
        for folder in (
            BUILTIN / "facts-selector",
            *(checkpoint(run, i) / "selector" for i in (1, 2)),
        )
    )
    assert before.keys() == one.keys() == two.keys()
    assert any(not torch.equal(before[n], one[n]) for n in before)
    assert any(not torch.equal(one[n], two[n]) for n in one)
    assert not (checkpoint(run, 1) / "generator").exists()


def test_selections_are_those_of_our_prompts_and_rewards(told):
    """Two questions' prompts agree with the worker's token for token, or the log-probabilities
    that TRL gave their selections would not be our model's."""
    from dro_rl.learner import Learner
    from dro_rl.policy.completion import Completion
    from dro_rl.questions import load_questions, questions_of
    from dro_rl.recipe_file import load_recipe, localise
    from dro_rl.tracking.console import Console

    run, _ = told
    recipe = localise(load_recipe(str(run / "recipe.yaml")))
    learner = Learner(recipe, "selector", recipe.selector.model, 1, 1e-3)
    wanted = questions_of(recipe, load_questions(recipe, Console()).train, 1)
    rows = rollouts(run, 1)
    assert [r["example"] for r in rows] == [e.id for e in wanted for _ in range(4)]
    for row in rows[:8]:
        example = next(e for e in wanted if e.id == row["example"])
        prompt = learner.writer.select(example.question, example.candidates, 2)
        ids = learner.writer.completion(row["selection"])
        with torch.no_grad():
            logps = learner.objective.likelihood.of([Completion(prompt.token_ids, ids)])
        assert row["logq"] == pytest.approx(logps.sum().item(), abs=1e-4)
        named, malformed = read_selection(row["selection"], len(example.candidates), 2)
        assert (list(named), malformed) == (row["documents"], row["malformed"])
    weights = [r["selector_weight"] for r in rows]
    assert any(weights) and sum(weights) == pytest.approx(0, abs=1e-3)


def test_the_console_is_ours(told):
    _, result = told
    assert "iteration 2/2: learn: 16 questions" in result.out
    assert "'loss'" not in result.out and "it/s" not in result.out
    assert result.err == ""


def test_a_resumed_run_equals_an_uninterrupted_one(told, tmp_path):
    straight, _ = told
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    shutil.rmtree(checkpoint(run, 2))
    dro_rl("train", "--resume", run).succeeded()
    assert len(iterations(run)) == 2
    ours, theirs = (weights(checkpoint(r, 2) / "selector") for r in (run, straight))
    assert all(torch.equal(ours[n], theirs[n]) for n in theirs)


def test_adapters_and_a_divergence_from_the_start(tmp_path):
    run = tmp_path / "run"
    train(
        run,
        "training.iterations=1",
        "selector.lora.rank=4",
        "algorithm.kl=0.1",
        "algorithm.scale=none",
        "training.epochs=2",
    ).succeeded()
    rows = steps(run)
    assert len(rows) == 4
    assert rows[0]["selector/kl"] == pytest.approx(0, abs=1e-6) and rows[-1]["selector/kl"] > 0
    config = json.loads((checkpoint(run, 1) / "selector" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert not any("lora" in n for n in weights(checkpoint(run, 1) / "selector"))


def test_what_trl_cannot_do_is_refused(tmp_path):
    run = tmp_path / "run"
    train(run, "training.batch_size=5").refused("multiple of training.batch_size")
    train(run, "rollout.decoding=distinct").refused("rollout.decoding must be free")
    assert not run.exists()
