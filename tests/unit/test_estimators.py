"""Every estimator's expected gradient against its own objective, and their variances.

On real models and real coefficients (`weigh`): expectations are sums over all groups of m = 2 or 3
of the 25 selections, so they are exact; where m must be large, groups are simulated, and a distance
is compared with its own standard error, sqrt(trace of covariance / groups).
"""

import itertools
import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from dro_rl.algorithms import reinforce, weigh
from dro_rl.learner import Learner
from dro_rl.records import WeightedRollout
from dro_rl.sections.algorithm import Algorithm, ReinforceAlgorithm
from tests.enumeration import World, distance, make_world
from tests.tiny import make_recipe

ROUNDING = 1e-4  # relative, of float32 gradients


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def world(folder):
    return make_world(folder)


@cache
def section(text: str) -> Algorithm:
    """ "grpo scale=none" as a recipe's section."""
    kind, *options = text.split()
    settings = dict(o.split("=") for o in options)
    return TypeAdapter(Algorithm).validate_python({"kind": kind, "samples": 64, **settings})


def maximised(world: World, maximise: str) -> np.ndarray:
    """grad E[r] or grad E[log r], by autograd."""
    p, v = world.logps().double().exp(), torch.tensor(world.log_rewards)
    return world.gradient((p * (v.exp() if maximise == "reward" else v)).sum())


def log_marginal(world: World) -> np.ndarray:
    """grad log E[r], by autograd."""
    return world.gradient((world.logps().double() + torch.tensor(world.log_rewards)).logsumexp(0))


def flatter(world: World) -> tuple[np.ndarray, np.ndarray]:
    """Another distribution q to sample from, and log p_s / q."""
    q = world.probabilities**0.5
    q /= q.sum()
    return q, np.log(world.probabilities / q)


# --- the shortcut is the real thing -------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "dro",
        "dro baseline=uniform",
        "maxrl",
        "grpo",
        "grpo scale=none maximise=log_reward",
        "rloo",
        "reinforce",
        "ppo value_weight=0",
        "ppo value_weight=0 normalise=false gae_lambda=1",
    ],
)
def test_a_groups_gradient_is_its_coefficients_times_the_scores(folder, world, text):
    """Learner.backward gives -sum_i c_i grad log p_s(z_i|x), for clipped ratios at the policy that
    sampled too; a selection is drawn twice."""
    drawn = [7, 21, 7, 2, 13]
    algorithm = section(text)
    kind, *options = text.split()
    settings = {"kind": kind, "samples": 5, **dict(o.split("=") for o in options)}
    recipe = make_recipe(folder, rollout={"decoding": "distinct"}, algorithm=settings)
    learner = Learner(recipe, "selector", recipe.selector.model, 10, 1e-3)
    (c,), _ = weigh(algorithm, [world.group(drawn)])
    selections = tuple(world.rollout.selections[z] for z in drawn)
    rollout = replace(world.rollout, selections=selections)
    weighted = WeightedRollout(rollout, c.selector, c.generator, c.tokens)
    learner.backward([learner.objective.targets(weighted)])
    found = np.concatenate([p.grad.flatten().double().numpy() for p in learner.model.parameters()])
    wanted = world.expand(world.by_token(algorithm, drawn, c))
    assert np.linalg.norm(wanted) > 1e-2
    assert distance(-found, wanted) < ROUNDING


@pytest.mark.parametrize(
    "text", ["dro", "maxrl", "grpo", "grpo scale=none", "rloo", "reinforce", "ppo"]
)
def test_the_order_of_a_group_does_not_matter(world, text):
    """Which is why an expectation takes each set of selections once."""
    drawn, log_ratios = (
        [3, 0, 7, 3, 24, 11],
        flatter(world)[1] if text in ("dro", "maxrl") else None,
    )
    there = world.estimate(section(text), drawn, log_ratios)
    back = world.estimate(section(text), drawn[::-1], log_ratios)
    assert np.abs(there).max() > 1e-3
    assert there == pytest.approx(back, abs=1e-12)


# --- unbiased at any m --------------------------------------------------------------------------


@pytest.mark.parametrize("maximise", ["reward", "log_reward"])
@pytest.mark.parametrize(
    ("text", "m"),
    [("rloo", 2), ("rloo", 3), ("reinforce", 2), ("ppo gae_lambda=1 normalise=false", 2)],
)
def test_the_expected_gradient_is_that_of_the_expected_reward(world, text, m, maximise):
    """grad E[r], or of the evidence lower bound E[log r], exactly: REINFORCE's theorem, for PPO
    with lambda = 1 at whatever values the head gives (a state's value is a baseline)."""
    found = world.expectation(section(f"{text} maximise={maximise}"), m)
    assert distance(found, maximised(world, maximise)) < ROUNDING


@pytest.mark.parametrize("maximise", ["reward", "log_reward"])
@pytest.mark.parametrize("m", [2, 3])
def test_dr_grpo_is_that_of_the_expected_reward_but_for_a_factor(world, m, maximise):
    """Its baseline contains r_i itself: (1 - 1/m) of RLOO's, arXiv 2503.20783, sec. 3.3."""
    found = world.expectation(section(f"grpo scale=none maximise={maximise}"), m)
    assert distance(found / (1 - 1 / m), maximised(world, maximise)) < ROUNDING


def test_reinforce_takes_its_baseline_from_other_questions_and_stays_unbiased(world):
    """Two independent questions an iteration, and a running mean: exact over both's draws."""
    algorithm, p = section("reinforce"), world.probabilities
    total = np.zeros(world.scores.shape[:2])
    for ours, other in itertools.product(range(25), repeat=2):
        groups = [world.group([ours]), world.group([other], name="r")]
        (c, _), _ = weigh(algorithm, groups, running_mean=0.3)
        total += p[ours] * p[other] * world.by_token(algorithm, [ours], c)
    assert distance(world.expand(total), maximised(world, "reward")) < ROUNDING


def test_reinforce_corrects_another_sampling_distribution_exactly(world):
    q, log_ratios = flatter(world)
    found = world.expectation(section("reinforce"), 2, q, log_ratios)
    assert distance(found, maximised(world, "reward")) < ROUNDING


def test_ppo_below_lambda_1_is_biased_by_a_wrong_value_head(world):
    """Which shows that the value head takes part at all."""
    found = world.expectation(section("ppo gae_lambda=0.5 normalise=false"), 1)
    assert distance(found, maximised(world, "reward")) > 0.05


# --- GRPO's own formula -------------------------------------------------------------------------


def test_grpo_with_deviations_is_its_published_formula(world):
    """arXiv 2402.03300, eq. 3-4 at ratio 1, over all ordered pairs: sum_i 1/m 1/|z_i| A_i grad log
    p(z_i), A_i = (r_i - mean) / (sample deviation + 1e-4)."""
    p, r = world.probabilities, np.exp(world.log_rewards)
    weight_of_pair = p[:, None] * p
    gap = (r[:, None] - r) / 2  # r_1 less the mean; r_2's is the opposite
    advantage = gap / (np.abs(gap) * math.sqrt(2) + 1e-4)
    of_each = weight_of_pair * advantage / 2
    coefficient = (of_each.sum(1) - of_each.sum(0)) / world.lengths
    wanted = coefficient @ world.scores.sum(1)
    assert distance(world.expectation(section("grpo"), 2), wanted) < 1e-9
    assert distance(wanted, maximised(world, "reward")) > 0.05


# --- grad log E[r], as m grows ------------------------------------------------------------------


@pytest.mark.parametrize("off_policy", [False, True])
@pytest.mark.parametrize("text", ["dro", "dro baseline=uniform", "maxrl"])
def test_large_groups_approach_the_gradient_of_the_log_marginal(world, text, off_policy):
    """grad log E[r], which for r = p_g is grad log p(y|x): bias 1/m, here below the error."""
    m, groups, algorithm = 512, 64, section(text)
    q, log_ratios = flatter(world) if off_policy else (world.probabilities, None)
    found = np.stack(
        [world.estimate(algorithm, drawn, log_ratios) for drawn in world.draw(groups, m, 0, q)]
    )
    wanted = log_marginal(world)
    standard_error = math.sqrt(world.squared_errors(found).mean() / groups)
    assert standard_error < 0.03 * np.linalg.norm(wanted)
    assert np.linalg.norm(world.expand(found.mean(0)) - wanted) < 3 * standard_error


def test_dros_bias_is_that_of_self_normalised_weights_and_shrinks(world):
    """E[sum_i w_i grad log p(z_i)] at m = 2 by all pairs, w = r / (r_1 + r_2), against simulation;
    then its distance from grad log E[r], squared and less its own variance."""
    p, r = world.probabilities, np.exp(world.log_rewards)
    share = r[:, None] / (r[:, None] + r)
    pairs = ((p[:, None] * p) * share).sum(1) + ((p[:, None] * p) * (1 - share)).sum(0)
    exact_2 = pairs @ world.scores.sum(1)
    assert distance(world.expectation(section("dro"), 2), exact_2) < 1e-9
    wanted, biases = log_marginal(world), {}
    groups = 800
    for m in (2, 8, 64):
        found = np.stack([world.estimate(section("dro"), d) for d in world.draw(groups, m, m)])
        mean = world.expand(found.mean(0))
        error = math.sqrt(world.squared_errors(found).mean() / groups)
        if m == 2:
            assert np.linalg.norm(mean - exact_2) < 3 * error
        biases[m] = (np.linalg.norm(mean - wanted), error)
    assert biases[2][0] > 5 * biases[2][1]
    assert biases[2][0] - biases[2][1] > biases[8][0] + biases[8][1]
    assert biases[8][0] - biases[8][1] > biases[64][0] + biases[64][1]


@pytest.mark.parametrize("m", [2, 3])
def test_maxrl_of_right_and_wrong_is_a_truncated_series(world, m):
    """For r in {0, 1}, with p = E[r]: log p = -sum_k (1 - p)^k / k, whose first m terms the weights
    r_i / (m mean r) ascend (arXiv 2602.02710, theorem 1), and one less with the baseline."""
    right = np.arange(25) % 2 == 0
    binary = replace(world, log_rewards=np.where(right, 0.0, -math.inf))
    failure = 1 - world.logps().double().exp()[torch.tensor(right)].sum()
    assert 0.1 < failure.item() < 0.9
    wanted = world.gradient(sum(-(failure**k) / k for k in range(1, m)))
    assert distance(binary.expectation(section("maxrl"), m), wanted) < ROUNDING
    one_more = world.gradient(sum(-(failure**k) / k for k in range(1, m + 1)))
    assert distance(binary.expectation(section("dro"), m), one_more) < ROUNDING


# --- variance -----------------------------------------------------------------------------------

GROUPS = 1500


def assert_less(low: np.ndarray, high: np.ndarray) -> None:
    """Of two means of squared errors over the same groups, by 5 standard errors."""
    gap = high - low
    assert gap.mean() > 5 * gap.std() / math.sqrt(len(gap)), (low.mean(), high.mean())


def squared_errors(world: World, algorithm: Algorithm, m: int = 8) -> np.ndarray:
    found = [world.estimate(algorithm, drawn) for drawn in world.draw(GROUPS, m, 1)]
    return world.squared_errors(np.stack(found))


def reinforced(world: World, baseline: float) -> np.ndarray:
    algorithm = ReinforceAlgorithm(kind="reinforce")
    return world.squared_errors(
        np.stack(
            [
                world.by_token(
                    algorithm,
                    drawn,
                    reinforce.coefficients(algorithm, world.group(drawn), baseline),
                )
                for drawn in world.draw(GROUPS, 8, 1)
            ]
        )
    )


def test_the_uniform_baseline_lowers_dros_variance(world):
    assert_less(
        squared_errors(world, section("dro baseline=uniform")),
        squared_errors(world, section("dro")),
    )


def test_a_baseline_lowers_reinforces_variance(world):
    """Whether it is the mean reward, or made of the group's other selections (RLOO)."""
    without = reinforced(world, 0.0)
    mean = float(world.probabilities @ np.exp(world.log_rewards))
    assert_less(reinforced(world, mean), without)
    assert_less(squared_errors(world, section("rloo")), without)


def test_dros_variance_falls_with_the_size_of_the_group(world):
    sizes = [squared_errors(world, section("dro"), m) for m in (1, 2, 4, 8, 16)]
    for smaller, larger in itertools.pairwise(sizes):
        spread = math.sqrt((smaller.var() + larger.var()) / GROUPS)
        assert smaller.mean() - larger.mean() > 5 * spread
