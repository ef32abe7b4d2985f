"""DRO's estimator against exact enumeration of every selection (N = 5, K = 2), on real models."""

import math

import pytest

from dro_rl.algorithms import Group, weigh
from dro_rl.algorithms.dro import effective_sample_size, importance_weights
from dro_rl.learner import Learner
from dro_rl.policy.targets import answer_target, target_log_likelihoods
from dro_rl.recipe import DroAlgorithm
from dro_rl.records import Rollout, WeightedRollout
from dro_rl.reward.service import RewardService
from dro_rl.rollout.worker import RolloutWorker
from tests.tiny import all_selections, make_example, make_recipe, make_rollout

DRO = DroAlgorithm()


def coefficients(algorithm, log_rewards, answer_tokens=0, log_ratios=None):
    """Of one group, through what the trainer calls."""
    ratios = tuple(log_ratios) if log_ratios else None
    group = Group("q", tuple(log_rewards), ratios, answer_tokens=answer_tokens)
    ((found,), _) = weigh(algorithm, [group])
    return found


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return make_recipe(tmp_path_factory.mktemp("models"), rollout={"decoding": "distinct"})


@pytest.fixture(scope="module")
def learners(recipe):
    return {
        p: Learner(recipe, p, recipe.policy(p).model, 10, 1e-3) for p in ("selector", "generator")
    }


@pytest.fixture(scope="module")
def everything(recipe) -> Rollout:
    """The group of all well-formed selections: the 20 ordered pairs and the 5 single documents."""
    return make_rollout(recipe, make_example(), all_selections(5, 2))


@pytest.fixture(scope="module")
def enumerated(learners, everything):
    """log p_s(z|x) and log p_g(y|x,d_z) of every selection, with their graphs."""
    selector, generator = learners["selector"], learners["generator"]
    completions = [
        selector.objective.selection(everything, s.token_ids) for s in everything.selections
    ]
    logp_s = selector.objective.likelihood.of(completions)
    targets = [
        answer_target(generator.writer, everything.example, s.documents, "first")
        for s in everything.selections
    ]
    return logp_s, target_log_likelihoods(generator.objective.likelihood, targets)


def test_selector_probabilities_sum_to_one(enumerated):
    logp_s, _ = enumerated
    assert logp_s.exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_m_step_gradient_is_that_of_the_marginal_likelihood(learners, everything, enumerated):
    """With every selection once (q uniform), sum_i w_i grad log p is grad log p(y|x)."""
    logp_s, logp_g = enumerated
    m = len(everything.selections)
    ratios = [p + math.log(m) for p in logp_s.tolist()]
    weights = coefficients(DRO, logp_g.tolist(), 0, ratios)
    weighted = WeightedRollout(everything, weights.selector, weights.generator)
    (logp_s + logp_g).logsumexp(0).backward(retain_graph=True)
    for learner in learners.values():
        exact = {n: -p.grad.clone() for n, p in learner.trainable.items()}
        learner.optimisation.zero_grad()
        learner.backward([learner.objective.targets(weighted)])
        error = sum((p.grad - exact[n]).square().sum() for n, p in learner.trainable.items())
        scale = sum(g.square().sum() for g in exact.values())
        assert scale > 1e-6
        assert math.sqrt(error / scale) < 1e-4
        learner.optimisation.zero_grad()


def test_posterior_at_4096_samples(recipe, everything, enumerated):
    """Self-normalised importance weights on policy approach p(z|x,y) of the enumeration."""
    logp_s, logp_g = (t.detach().double() for t in enumerated)
    exact = dict(
        zip(
            [s.token_ids for s in everything.selections],
            (logp_s + logp_g).softmax(0).tolist(),
            strict=True,
        )
    )
    worker = RolloutWorker(recipe, "selector", recipe.selector.model)
    (rollout,) = worker.select([everything.example], 4096, 0, False)
    (scored,) = RewardService(recipe, recipe.generator.model).score([rollout])
    weights = coefficients(DRO, scored.log_rewards, scored.answer_tokens).selector
    estimate = dict.fromkeys(exact, 0.0)
    for s, w in zip(rollout.selections, weights, strict=True):
        estimate[s.token_ids] += w
    assert sum(abs(estimate[z] - exact[z]) for z in exact) / 2 < 0.02


def test_weights_are_a_softmax_of_rewards_over_temperature():
    assert importance_weights([0.0, math.log(3)]) == pytest.approx([0.25, 0.75])
    assert importance_weights([0.0, 2 * math.log(3)], temperature=2) == pytest.approx([0.25, 0.75])


def test_ratios_correct_the_sampling_whatever_the_temperature():
    """Two equal rewards, the first drawn three times as often as the policy would: a quarter."""
    weights = importance_weights([-5.0, -5.0], [-math.log(3), 0.0], temperature=7)
    assert weights == pytest.approx([0.25, 0.75])


def test_hundreds_of_nats_do_not_underflow():
    assert importance_weights([-2000.0, -2000.0 + math.log(3)]) == pytest.approx([0.25, 0.75])


def test_no_reward_at_all_moves_nothing():
    nothing = [-math.inf] * 4
    assert importance_weights(nothing) == [0.0] * 4
    baseline = DroAlgorithm(baseline="uniform")
    assert coefficients(baseline, nothing, 3).selector == (0.0,) * 4


def test_uniform_baseline_is_maxrls_advantage():
    """m w_i - 1 = (r_i - mean r) / mean r with r = p_g (arXiv 2602.02710)."""
    rewards = [0.1, 0.4, 0.3, 0.0]
    logs = [math.log(r) if r else -math.inf for r in rewards]
    got = coefficients(DroAlgorithm(baseline="uniform"), logs, 0)
    mean = sum(rewards) / 4
    assert [4 * c for c in got.selector] == pytest.approx([(r - mean) / mean for r in rewards])
    assert sum(got.generator) == pytest.approx(1)


def test_per_token_temperature_is_the_answers_length():
    logs = [-4.0, -8.0]
    got = coefficients(DroAlgorithm(tau="per_token"), logs, 4)
    assert got.selector == pytest.approx(importance_weights([-1.0, -2.0]))


def test_effective_sample_size():
    assert effective_sample_size([0.25] * 4) == pytest.approx(4)
    assert effective_sample_size([1.0, 0, 0]) == 1
    assert effective_sample_size([0.0, 0.0]) == 0


def test_uniform_baseline_leaves_no_drift_off_policy():
    """Equal rewards: whatever was sampled how often, the centred coefficients are all 0."""
    got = coefficients(DroAlgorithm(baseline="uniform"), [-3.0] * 3, 0, [0.7, -1.1, 0.2])
    assert got.selector == pytest.approx((0, 0, 0))
    assert sum(got.generator) == pytest.approx(1)
