"""The M-step: what the loss is made of, and that nothing accidental changes it."""

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
from tests.learners import make_batch, make_learner
from tests.tiny import make_example


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


def gradient(learner: Learner, batch) -> dict[str, torch.Tensor]:
    learner.optimisation.zero_grad()
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
