"""Steps of a learner that fail: not finite, or too large for the memory."""

import math
from dataclasses import replace

import pytest
import torch

from dro_rl.errors import UserError
from dro_rl.learner import Learner
from dro_rl.step_metrics import tell_bad_steps
from tests.learners import make_batch, make_learner


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


def spoil(learner: Learner, monkeypatch, name: str, how: float, gradient_alone: bool) -> None:
    """Let the log-likelihoods of a question's targets be `how`, or their gradient alone."""
    plain, bad = learner.objective.log_likelihoods, set()
    for w in make_batch(learner):
        if w.rollout.example.id == name:
            bad |= {c.prompt_ids for t in learner.objective.targets(w) for c in t.completions}

    def spoilt(targets):
        logps = plain(targets)
        hit = torch.tensor([t.completions[0].prompt_ids in bad for t in targets])
        factor = torch.where(hit, how, 1.0)
        if gradient_alone:
            logps.register_hook(lambda grad: grad * factor)
            return logps
        return logps * factor

    monkeypatch.setattr(learner.objective, "log_likelihoods", spoilt)


@pytest.mark.parametrize("size", [1, 999])
@pytest.mark.parametrize("gradient_alone", [False, True])
def test_a_step_that_is_not_finite_is_skipped_and_its_question_named(
    folder, monkeypatch, size, gradient_alone
):
    """Weights and optimiser are as before it, the schedule has gone on, and the next step is that
    of a learner that never saw the batch."""
    sections = {"training": {"tokens_per_microbatch": size, "schedule": "cosine"}}
    learner, other = (make_learner(folder, **sections) for _ in range(2))
    batch = make_batch(learner)
    for one in (learner, other):
        one.step(batch)
    before = {n: p.detach().clone() for n, p in learner.trainable.items()}
    with monkeypatch.context() as spoiled:
        spoil(learner, spoiled, "q1", float("nan"), gradient_alone)
        told = learner.step(batch)
    assert told.bad_steps == 1 and told.bad_questions == ("q1",)
    assert math.isfinite(told.loss) == gradient_alone and not math.isfinite(told.grad_norm)
    assert all(torch.equal(p, before[n]) for n, p in learner.trainable.items())
    other.optimisation.schedule.step()
    assert learner.step(batch) == replace(other.step(batch), bad_steps=1)


def test_a_bad_step_that_scores_names_its_question(folder, monkeypatch):
    learner = make_learner(folder, "generator")
    rollouts = [w.rollout for w in make_batch(learner)]
    spoil(learner, monkeypatch, "q2", float("nan"), False)
    told, scored = learner.step_and_score(rollouts)
    assert told.bad_questions == ("q2",) and [s.rollout for s in scored] == rollouts
    assert [max(s.log_rewards) > -math.inf for s in scored] == [True, True, False]


def test_bad_steps_are_counted_beyond_a_restart(folder, monkeypatch, tmp_path):
    learner = make_learner(folder)
    batch = make_batch(learner)
    with monkeypatch.context() as spoiled:
        spoil(learner, spoiled, "q0", float("inf"), False)
        learner.step(batch)
    learner.save_state(tmp_path / "selector")
    resumed = make_learner(folder)
    resumed.restore(tmp_path / "selector")
    assert resumed.step(batch).bad_steps == 1


def test_more_bad_steps_than_allowed_end_the_run(folder, monkeypatch):
    learner = make_learner(folder, training={"max_bad_steps": 1})
    batch, said = make_batch(learner), []
    spoil(learner, monkeypatch, "q1", float("nan"), False)
    tell_bad_steps(learner.recipe, {"selector": learner.step(batch)}, said.append)
    assert "step of the selector was skipped" in said[0] and "because of q1" in said[0]
    with pytest.raises(UserError, match="2 skipped steps, more than training.max_bad_steps"):
        tell_bad_steps(learner.recipe, {"selector": learner.step(batch)}, said.append)


def fail_once(monkeypatch, number: int, error: Exception) -> list[int]:
    """Let the backward pass of that number fail when half of it is done; sizes of all passes."""
    plain, sizes = torch.Tensor.backward, []

    def backward(loss, *args, **kwargs):
        plain(loss, *args, **kwargs)
        sizes.append(1)
        if len(sizes) == number:
            raise error

    monkeypatch.setattr(torch.Tensor, "backward", backward)
    return sizes


CPU = RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate")


@pytest.mark.parametrize("error", [CPU, torch.OutOfMemoryError("CUDA out of memory")])
@pytest.mark.parametrize("method", ["step", "step_and_score"])
@pytest.mark.parametrize("number", [1, 2])
def test_a_pass_that_does_not_fit_is_split_and_nothing_else_changes(
    folder, monkeypatch, capsys, error, method, number
):
    """The loss and the weights after the step; the next step takes smaller passes at once."""
    tokens = {"training": {"tokens_per_microbatch": 110}}  # two questions in each of three passes
    learner, other = (make_learner(folder, "generator", **tokens) for _ in range(2))
    batch = make_batch(learner) * 2
    given = batch if method == "step" else [w.rollout for w in batch]
    wanted = getattr(other, method)(given)
    with monkeypatch.context() as failing:
        passes = fail_once(failing, number, error)
        found = getattr(learner, method)(given)
    assert len(passes) > number
    warned = capsys.readouterr().out
    assert f"at most {learner.objective.passes.tokens}" in warned
    assert "set training.tokens_per_microbatch to that" in warned
    if method == "step_and_score":
        (found, scored), (wanted, others) = found, wanted
        assert [s.log_rewards for s in scored] == [
            pytest.approx(s.log_rewards, abs=1e-5) for s in others
        ]
    assert found.loss == pytest.approx(wanted.loss, rel=1e-5)
    assert found.grad_norm == pytest.approx(wanted.grad_norm, rel=1e-4)
    assert learner.objective.passes.tokens < 110


def test_a_question_that_does_not_fit_alone_is_named(folder, monkeypatch):
    learner = make_learner(folder, training={"tokens_per_microbatch": 1})
    fail_once(monkeypatch, 1, CPU)
    with pytest.raises(UserError, match="q.: out of memory for this question alone"):
        learner.step(make_batch(learner))


def test_scoring_that_does_not_fit_is_split(folder, monkeypatch):
    learner = make_learner(folder, training={"tokens_per_microbatch": 999})
    rollouts = [w.rollout for w in make_batch(learner)]
    wanted, plain, sizes = learner.score(rollouts), learner.objective.likelihood.of, []

    def of(completions):
        sizes.append(len(completions))
        if len(completions) > 3:
            raise CPU
        return plain(completions)

    monkeypatch.setattr(learner.objective.likelihood, "of", of)
    assert learner.score(rollouts) == [pytest.approx(row, abs=1e-5) for row in wanted]
    assert learner.model.training and max(sizes) > 3


def test_another_error_is_not_taken_for_memory(folder, monkeypatch):
    learner = make_learner(folder)
    fail_once(monkeypatch, 1, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        learner.step(make_batch(learner))
