"""The M-step: what the loss is made of, and that nothing accidental changes it."""

import math
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from dro_rl.algorithms import Group, weigh
from dro_rl.errors import UserError
from dro_rl.learner import Learner
from dro_rl.policy.merging import Received, load_weights
from dro_rl.policy.weights import unpack
from dro_rl.records import WeightedRollout
from dro_rl.reward import load_reward
from dro_rl.reward.service import RewardService
from dro_rl.rollout.worker import RolloutWorker
from dro_rl.step_metrics import tell_bad_steps
from tests.tiny import make_example, make_recipe, make_rollout

GROUPS = [[(0, 1), (2, 3), (0, 1)], [(4,), (1, 0), (3, 2)], [(2, 0), (0, 2), (1, 3)]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


def make_learner(folder, policy="selector", **sections) -> Learner:
    recipe = make_recipe(folder, **sections)
    return Learner(recipe, policy, recipe.policy(policy).model, 20, 1e-2)


def make_batch(learner: Learner) -> list[WeightedRollout]:
    batch = []
    for number, chosen in enumerate(GROUPS):
        rollout = make_rollout(learner.recipe, make_example(number), chosen)
        weights = (0.5, 0.3, 0.2)
        batch.append(WeightedRollout(rollout, weights, weights))
    return batch


def gradient(learner: Learner, batch) -> dict[str, torch.Tensor]:
    learner.optimizer.zero_grad()
    learner.backward([learner.objective.targets(w) for w in batch])
    return {n: p.grad.clone() for n, p in learner.trainable.items()}


@pytest.mark.parametrize("policy", ["selector", "generator"])
def test_gradient_does_not_depend_on_the_micro_batch(folder, policy):
    whole, split = (
        make_learner(folder, policy, training={"tokens_per_microbatch": n}) for n in (999, 1)
    )
    batch = make_batch(whole)
    one, two = gradient(whole, batch), gradient(split, batch)
    for name in one:
        assert (one[name] - two[name]).norm() < 1e-5 * one[name].norm()


def test_equal_selections_are_computed_once_and_count_twice(folder):
    learner = make_learner(folder)
    batch = make_batch(learner)
    targets = learner.objective.targets(batch[0])
    assert [t.coefficient for t in targets] == pytest.approx([0.7, 0.3])


def test_loss_is_the_weighted_mean_over_questions(folder):
    learner = make_learner(folder, "generator")
    batch = make_batch(learner)
    wanted = 0.0
    for w in batch:
        for target in learner.objective.targets(w):
            (c,) = target.completions
            ids = torch.tensor([[*c.prompt_ids, *c.token_ids]])
            with torch.no_grad():
                logps = learner.model(ids).logits[0, :-1].log_softmax(-1)
            start = len(c.prompt_ids) - 1
            logp = sum(logps[start + i, t].item() for i, t in enumerate(c.token_ids))
            wanted -= target.coefficient * logp / len(batch)
    found = learner.backward([learner.objective.targets(w) for w in batch])
    assert found.loss == pytest.approx(wanted, 1e-5)


def test_a_group_without_weight_still_counts_as_a_question(folder):
    learner = make_learner(folder)
    first, second, _ = make_batch(learner)
    nothing = WeightedRollout(second.rollout, (0.0,) * 3, (0.0,) * 3)
    alone = gradient(learner, [first])
    beside = gradient(learner, [first, nothing])
    for name in alone:
        torch.testing.assert_close(beside[name] * 2, alone[name], atol=1e-6, rtol=1e-4)


def test_steps_raise_what_is_weighted_up(folder):
    learner = make_learner(folder)
    batch = make_batch(learner)
    before = learner.step(batch)
    for _ in range(10):
        after = learner.step(batch)
    assert after.loss < before.loss - 0.1


def test_gap_is_rounding_on_policy_and_grows_with_steps(folder):
    learner = make_learner(folder)
    batch = []
    for w in make_batch(learner):
        (logps,) = learner.score([w.rollout])
        selections = tuple(
            replace(s, logps=(p,)) for s, p in zip(w.rollout.selections, logps, strict=True)
        )
        batch.append(replace(w, rollout=replace(w.rollout, selections=selections)))
    assert learner.step(batch).logp_gap < 1e-4
    assert learner.step(batch).logp_gap > 1e-2


def test_resuming_is_exact(folder, tmp_path):
    batch = make_batch(make_learner(folder))
    straight = make_learner(folder, training={"schedule": "cosine", "warmup_steps": 2})
    straight.step(batch)
    straight.save(tmp_path / "selector")
    resumed = make_learner(folder, training={"schedule": "cosine", "warmup_steps": 2})
    resumed.restore(tmp_path / "selector")
    one, two = straight.step(batch), resumed.step(batch)
    assert one == two
    for a, b in zip(straight.trainable.values(), resumed.trainable.values(), strict=True):
        assert torch.equal(a, b)


def test_schedule_warms_up_and_decays(folder):
    learner = make_learner(folder, training={"schedule": "cosine", "warmup_steps": 4})
    batch = make_batch(learner)
    rates = [learner.step(batch).learning_rate for _ in range(20)]
    assert rates[:4] == pytest.approx([0.0025, 0.005, 0.0075, 0.01])
    assert rates[5] > rates[12] > rates[19] > 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("policy", ["selector", "generator"])
def test_lora_trains_and_ships_adapters_alone(folder, policy, dtype, tmp_path):
    learner = make_learner(
        folder, policy, **{policy: {"lora": {"rank": 4, "alpha": 6}, "dtype": dtype}}
    )
    assert learner.trainable and all("lora_" in n for n in learner.trainable)
    batch = make_batch(learner)
    first = learner.step(batch).loss
    for _ in range(5):
        last = learner.step(batch).loss
    assert last < first
    sent = learner.weights()
    adapters = sum(p.numel() * p.element_size() for p in learner.trainable.values())
    assert sum(array.nbytes for array in sent.values()) == adapters

    learner.save_policy(tmp_path)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto").state_dict()
    whole = Received(learner.section).whole(unpack(sent))
    assert whole.keys() == saved.keys()
    for name, weight in whole.items():
        assert weight.dtype == saved[name].dtype and torch.equal(weight, saved[name]), name


def test_adapters_that_were_sent_make_the_learners_policy(folder):
    learner = make_learner(folder, "generator", generator={"lora": {"rank": 4, "alpha": 6}})
    learner.step(make_batch(learner))
    plain = make_learner(folder, "generator")
    received = Received(learner.section)
    for _ in range(2):  # the second set of adapters replaces the first
        learner.step(make_batch(learner))
        load_weights(plain.model, received.whole(unpack(learner.weights())))
        (completion, wanted), (same, got) = (x.probe(make_example()) for x in (learner, plain))
        assert same == completion
        assert got == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("engine", [False, True], ids=["reward service", "engine"])
def test_adapters_go_on_what_they_adapt_whatever_a_process_started_with(folder, engine, tmp_path):
    learner = make_learner(folder, "generator", generator={"lora": {"rank": 4}})
    batch = make_batch(learner)
    learner.step(batch)
    learner.save_policy(tmp_path)  # a resumed run's engines and reward service start with this
    learner.step(batch)
    if engine:
        user = RolloutWorker(learner.recipe, "generator", str(tmp_path))
    else:
        user = RewardService(learner.recipe, str(tmp_path))
    user.load_weights(learner.weights(), 2)
    completion, wanted = learner.probe(make_example())
    got = user.probe(completion.prompt_ids, completion.token_ids)
    assert got == pytest.approx(wanted, abs=1e-5)


def test_adapters_of_another_model_are_refused(folder):
    learner = make_learner(folder, "generator", generator={"lora": {"rank": 4}})
    weights = {n.replace("layers.1", "layers.7"): w for n, w in unpack(learner.weights()).items()}
    with pytest.raises(RuntimeError, match="layers.7"):
        Received(learner.section).whole(weights)


def test_bfloat16_keeps_float32_weights_and_ships_bfloat16(folder):
    learner = make_learner(folder, selector={"dtype": "bfloat16"})
    assert {p.dtype for p in learner.trainable.values()} == {torch.float32}
    assert {w.dtype for w in unpack(learner.weights()).values()} == {torch.bfloat16}
    assert learner.step(make_batch(learner)).loss > 0


def test_documents_cut_for_the_generator_are_counted(folder):
    learner = make_learner(folder, "generator", generator={"max_length": 27})
    assert learner.step(make_batch(learner)).truncated_documents > 0
    assert make_learner(folder, "generator").step(make_batch(learner)).truncated_documents == 0


@pytest.mark.parametrize("kind", ["dro", "maxrl", "grpo", "rloo"])
def test_scoring_while_learning_is_scoring_then_learning(folder, kind):
    """Rewards, loss and the step itself, with equal selections, in micro-batches of one."""
    maximise = {"maximise": "log_reward"} if kind in ("grpo", "rloo") else {}
    algorithm = {"kind": kind, **maximise}
    sections = {"algorithm": algorithm, "training": {"tokens_per_microbatch": 1}}
    at_once, in_turn = (make_learner(folder, "generator", **sections) for _ in range(2))
    rollouts = [w.rollout for w in make_batch(at_once)]
    metrics, scored = at_once.step_and_score(rollouts)
    service = RewardService(in_turn.recipe, in_turn.section.model)
    wanted = service.score(rollouts)
    for found, want in zip(scored, wanted, strict=True):
        assert found.rollout == want.rollout
        assert found.log_rewards == pytest.approx(want.log_rewards, abs=1e-5)
        assert found.answer_tokens == want.answer_tokens
    groups = [Group("", s.log_rewards, answer_tokens=s.answer_tokens) for s in wanted]
    weighed, _ = weigh(in_turn.recipe.algorithm, groups)
    batch = [
        WeightedRollout(s.rollout, c.selector, c.generator)
        for s, c in zip(wanted, weighed, strict=True)
    ]
    assert metrics.loss == pytest.approx(in_turn.step(batch).loss, rel=1e-5)
    for a, b in zip(at_once.trainable.values(), in_turn.trainable.values(), strict=True):
        assert not torch.equal(a, torch.zeros_like(a))
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_an_impossible_answer_of_weight_0_does_not_spoil_the_step(folder, monkeypatch):
    learner = make_learner(folder, "generator")
    (rollout, *_) = [w.rollout for w in make_batch(learner)]
    targets = learner.objective.answers(rollout)
    plain = learner.objective.log_likelihoods

    def impossible(some):
        logps = plain(some)
        return torch.cat([logps[:1] - torch.inf, logps[1:]])

    monkeypatch.setattr(learner.objective, "log_likelihoods", impossible)
    reward = load_reward(learner.recipe.reward)
    evaluated, (scored,) = learner.objective.scored_loss(reward, [rollout], targets)
    assert min(scored.log_rewards) == -torch.inf
    assert evaluated.parts.loss.isfinite()


# --- steps that fail ------------------------------------------------------------------------------


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
    other.schedule.step()
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


# --- its state ------------------------------------------------------------------------------------


@pytest.mark.parametrize("harm", ["missing", "torn", "of another model"])
def test_a_state_that_cannot_be_used_is_refused(folder, tmp_path, harm):
    learner = make_learner(folder)
    learner.step(make_batch(learner))
    learner.save_state(tmp_path / "selector")
    (file,) = (tmp_path / "selector.learner").iterdir()
    if harm == "missing":
        file.rename(file.with_name("rank-0000-of-0002.safetensors"))
    elif harm == "torn":
        file.write_bytes(file.read_bytes()[:-100])
    else:
        learner = make_learner(folder, selector={"lora": {"rank": 4}})
    with pytest.raises(UserError, match="selector.learner: cannot be resumed from"):
        learner.restore(tmp_path / "selector")
