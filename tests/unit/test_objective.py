"""What the selector learns from a group by clipped ratios, and with `kl`: through real models,
against loops of one forward pass a selection; the value head; the selector that training started
with."""

import math
import random
from dataclasses import replace

import pytest
import torch

from dro_rl.algorithms import Group, weigh
from dro_rl.learner import Learner
from dro_rl.records import Rollout, WeightedRollout
from tests.tiny import as_sampled, make_example, make_recipe, make_rollout

GROUPS = [[(0, 1), (2,), (0, 1), (3, 2)], [(4,), (1, 0), (3, 2), (4,)], [(2, 0), (1, 3)] * 2]
KINDS = {
    "grpo": {"kind": "grpo"},
    "grpo with kl": {"kind": "grpo", "kl": 0.3},
    "dr grpo with kl": {"kind": "grpo", "scale": "none", "kl": 0.3},
    "rloo": {"kind": "rloo"},
    "rloo with kl": {"kind": "rloo", "kl": 0.3},
    "dro with kl": {"kind": "dro", "baseline": "uniform", "kl": 0.3},
    "ppo": {"kind": "ppo", "gae_lambda": 0.9, "value_clip": 0.05},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


def make_learner(folder, algorithm: dict, **sections) -> Learner:
    """With a value head, where there is one, that says something."""
    recipe = make_recipe(folder, algorithm=algorithm, **sections)
    learner = Learner(recipe, "selector", recipe.selector.model, 20, 1e-2)
    if learner.objective.value_head is not None:
        torch.nn.init.normal_(learner.objective.value_head.weight, std=0.3)
    return learner


def make_batch(learner: Learner) -> list[WeightedRollout]:
    """Three groups with selections drawn twice, sampled by a policy a little different from the
    learner's, so that ratios are on both sides of 1 and some are clipped."""
    draw, rewards, batch = random.Random(1), random.Random(2), []
    for number, chosen in enumerate(GROUPS):
        rollout = as_sampled(learner, make_rollout(learner.recipe, make_example(number), chosen))
        moved = {z: draw.gauss(0, 0.15) for z in chosen}  # equal selections are equally likely
        selections = tuple(
            replace(s, logps=(s.logps[0] + moved[s.documents], *s.logps[1:]))
            for s in rollout.selections
        )
        reward = {z: rewards.gauss(-1, 1) for z in chosen}
        values = learner.values([rollout])[0] if learner.objective.value_head else ()
        old = tuple(tuple(v + 0.1 for v in row) for row in values)
        group = Group(f"q{number}", tuple(reward[z] for z in chosen), values=old)
        (c,), _ = weigh(learner.recipe.algorithm, [group])
        batch.append(
            WeightedRollout(
                replace(rollout, selections=selections), c.selector, c.generator, c.tokens
            )
        )
    return batch


def forward(learner: Learner, rollout: Rollout, i: int) -> tuple[torch.Tensor, torch.Tensor]:
    """log p of each token of a selection, and the hidden states before them, by the plainest
    forward there is."""
    prompt, completion = rollout.prompt_ids, rollout.selections[i].token_ids
    out = learner.model(torch.tensor([[*prompt, *completion]]), output_hidden_states=True)
    span = slice(len(prompt) - 1, -1)
    logps = out.logits[0, span].float().log_softmax(-1)
    hidden = out.hidden_states[-1][0, span]
    return logps[range(len(completion)), list(completion)], hidden


def plain_loss(learner: Learner, initial: Learner, weighted: WeightedRollout) -> torch.Tensor:
    """The loss of a group, one selection after another, by the papers' formulas."""
    algorithm, rollout = learner.recipe.algorithm, weighted.rollout
    m, loss = len(rollout.selections), torch.zeros(())
    for i, s in enumerate(rollout.selections):
        logps, hidden = forward(learner, rollout, i)
        ratio = (logps - torch.tensor(s.logps)).exp()
        advantage = torch.full_like(ratio, weighted.selector[i])
        if algorithm.kind == "rloo":
            ratio, advantage = ratio.prod(), advantage[0]
        if algorithm.kind == "dro":
            ratio, advantage = logps.sum(), advantage[0]
        if algorithm.kind == "ppo":
            advantage = torch.tensor(weighted.tokens[i].advantages) / m
        clip = math.inf if algorithm.clips == "no" else algorithm.clip
        near = ratio.clamp(1 - clip, 1 + clip)
        terms = -torch.min(ratio * advantage, near * advantage)
        by_mean = algorithm.kind == "grpo" and algorithm.scale == "std"
        if algorithm.kl:
            with torch.no_grad():
                reference, _ = forward(initial, rollout, i)
            gap = reference - logps
            kl = algorithm.kl * (gap.exp() - gap - 1) / m
            loss = loss + (kl.mean() if by_mean else kl.sum())
        if algorithm.kind == "ppo":
            tokens = weighted.tokens[i]
            value, old = learner.objective.value_head(hidden)[:, 0], torch.tensor(tokens.values)
            clipped = old + (value - old).clamp(-algorithm.value_clip, algorithm.value_clip)
            back = torch.tensor(tokens.returns)
            error = torch.max((value - back) ** 2, (clipped - back) ** 2) / 2
            terms = terms + algorithm.value_weight * error / m
        loss = loss + (terms.mean() if by_mean else terms.sum())
    return loss


@pytest.mark.parametrize("name", KINDS)
def test_loss_and_gradient_are_those_of_the_papers_formulas(folder, name):
    """In one micro-batch and in three, with selections drawn twice, of a policy that moved."""
    initial = make_learner(folder, {"kind": "rloo"})
    for size in (999, 1):
        learner = make_learner(folder, KINDS[name], training={"tokens_per_microbatch": size})
        batch = make_batch(learner)
        for n, p in learner.model.named_parameters():  # away from the initial model
            p.data.add_(0.01 * torch.randn(p.shape, generator=torch.manual_seed(len(n))))
        total = torch.stack([plain_loss(learner, initial, w) for w in batch]).mean()
        total.backward()
        wanted = {n: p.grad.clone() for n, p in learner.trainable.items() if p.grad is not None}
        learner.optimisation.zero_grad()
        totals = learner.backward([learner.objective.targets(w) for w in batch])
        assert totals.loss == pytest.approx(total.item(), rel=1e-4, abs=1e-6)
        assert 0 < totals.clipped < 1 or learner.recipe.algorithm.clips == "no"
        found = {n: p.grad for n, p in learner.trainable.items() if p.grad is not None}
        assert found.keys() == wanted.keys()
        error = sum((found[n] - wanted[n]).square().sum() for n in wanted)
        scale = sum(g.square().sum() for g in wanted.values())
        assert scale > 1e-6 and error < 1e-8 * scale


@pytest.mark.parametrize("kind", ["grpo", "rloo", "ppo"])
def test_equal_selections_are_one_forward_pass(folder, kind):
    learner = make_learner(folder, KINDS[kind])
    (first, *_) = make_batch(learner)
    targets = learner.objective.targets(first)
    assert len(targets) == 3
    assert [t.share for t in targets] == [0.5, 0.25, 0.25]


# --- the selector that training started with ----------------------------------------------------


@pytest.mark.parametrize("lora", [None, {"rank": 4, "alpha": 8}])
def test_the_divergence_is_from_the_initial_selector_after_the_policy_has_moved(folder, lora):
    """Full weights: a frozen copy. LoRA: the same model with its adapters off, without dropout."""
    initial = make_learner(folder, {"kind": "rloo"})
    initial.model.eval()
    learner = make_learner(folder, KINDS["grpo with kl"], selector={"lora": lora})
    batch = make_batch(learner)
    learner.model.eval()
    assert learner.objective.loss(learner.objective.targets(batch[0])).parts.kl < 1e-5
    for _ in range(5):
        learner.model.train()
        learner.step(batch)
    learner.model.eval()
    wanted = 0.0
    rollout = batch[0].rollout
    with torch.no_grad():
        for i in range(4):
            now, before = forward(learner, rollout, i)[0], forward(initial, rollout, i)[0]
            wanted += ((before - now).exp() - (before - now) - 1).mean().item() / 4
    found = learner.objective.loss(learner.objective.targets(batch[0])).parts.kl
    assert wanted > 0.01
    assert found == pytest.approx(wanted, rel=1e-3)


def test_the_reference_does_not_learn_and_is_not_saved(folder, tmp_path):
    learner = make_learner(folder, KINDS["grpo with kl"])
    parameters = sum(p.numel() for p in learner.model.parameters())
    about = learner.ready()
    assert about["parameters"] == about["trainable"] == parameters
    learner.step(make_batch(learner))
    learner.save(tmp_path / "selector")
    resumed = make_learner(folder, KINDS["grpo with kl"])
    resumed.restore(tmp_path / "selector")
    batch = make_batch(learner)
    assert learner.step(batch) == resumed.step(batch)
    assert learner.step(batch).kl > 0


def test_a_group_without_advantage_still_pulls_back_to_the_reference(folder):
    learner = make_learner(folder, KINDS["grpo with kl"])
    (weighted, *_) = make_batch(learner)
    for _ in range(3):
        learner.step([weighted])
    nothing = replace(weighted, selector=(0.0,) * 4)
    before = learner.step([nothing]).kl
    for _ in range(10):
        after = learner.step([nothing]).kl
    assert after < before / 2


# --- the value head -----------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [None, {"rank": 4, "alpha": 8}])
def test_values_are_the_heads_of_the_last_hidden_states(folder, lora):
    """`output_hidden_states[-1]`, before each token; several questions, selections drawn twice."""
    learner = make_learner(folder, KINDS["ppo"], selector={"lora": lora})
    torch.nn.init.constant_(learner.objective.value_head.bias, 0.7)
    rollouts = [
        make_rollout(learner.recipe, make_example(i, 5 - i), chosen)
        for i, chosen in enumerate(([(0, 1), (2,), (0, 1)], [(3,), (1, 2)]))
    ]
    found = learner.values(rollouts)
    assert [len(group) for group in found] == [3, 2]
    for rollout, group in zip(rollouts, found, strict=True):
        for i, values in enumerate(group):
            with torch.no_grad():
                _, hidden = forward(learner, rollout, i)
                wanted = learner.objective.value_head(hidden)[:, 0]
            assert values == pytest.approx(wanted.tolist(), abs=1e-5)


def test_a_new_value_head_says_0_of_every_state(folder):
    recipe = make_recipe(folder, algorithm=KINDS["ppo"])
    learner = Learner(recipe, "selector", recipe.selector.model, 20, 1e-2)
    rollout = make_rollout(recipe, make_example(), GROUPS[0])
    assert all(v == 0 for values in learner.values([rollout])[0] for v in values)
    assert Learner(recipe, "generator", recipe.generator.model, 20, 1e-2).objective.value_head is (
        None
    )


def test_the_value_head_learns_the_return(folder):
    learner = make_learner(folder, {**KINDS["ppo"], "value_clip": 10, "value_weight": 1})
    batch = make_batch(learner)
    nothing = [
        replace(
            w, tokens=tuple(replace(t, advantages=(0.0,) * len(t.advantages)) for t in w.tokens)
        )
        for w in batch
    ]
    before = learner.step(nothing).value_loss
    for _ in range(60):
        after = learner.step(nothing).value_loss
    assert after < before / 3


@pytest.mark.parametrize("lora", [None, {"rank": 4, "alpha": 8}])
def test_the_value_head_is_saved_and_restored(folder, tmp_path, lora):
    """The step after resuming is the step that would have been, bit for bit."""
    straight = make_learner(folder, KINDS["ppo"], selector={"lora": lora})
    batch = make_batch(straight)
    straight.step(batch)
    straight.save(tmp_path / "selector")
    resumed = make_learner(folder, KINDS["ppo"], selector={"lora": lora})
    torch.nn.init.normal_(resumed.objective.value_head.weight)
    resumed.restore(tmp_path / "selector")
    rollouts = [w.rollout for w in batch]
    assert straight.values(rollouts) == resumed.values(rollouts)
    assert straight.step(batch) == resumed.step(batch)
    assert any(n.startswith("value_head") for n in straight.trainable)
    for a, b in zip(straight.trainable.values(), resumed.trainable.values(), strict=True):
        assert torch.equal(a, b)
    assert not any("value_head" in n for n in straight.weights())


def test_tokens_and_values_of_ragged_rows_are_0_after_their_ends(folder):
    learner = make_learner(folder, KINDS["ppo"])
    rollout = make_rollout(learner.recipe, make_example(), [(0,), (1, 2)])
    completions = [learner.objective.selection(rollout, s.token_ids) for s in rollout.selections]
    likelihood = learner.objective.likelihood
    logps, values = likelihood.tokens_and_values(completions, learner.objective.value_head)
    assert logps.shape == values.shape == (2, 4)
    assert torch.all(logps[0, 2:] == 0) and torch.all(values[0, 2:] == 0)
    torch.testing.assert_close(logps, likelihood.tokens(completions))
