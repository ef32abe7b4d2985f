"""Coefficients from rewards, by hand: `weigh` for every algorithm, and the functions below it."""

import math
import random

import pytest
from pydantic import TypeAdapter

from dro_rl.algorithms import Coefficients, Group, ppo, reinforce, weigh
from dro_rl.algorithms.dro import effective_sample_size, importance_weights, tempered
from dro_rl.errors import UserError
from dro_rl.sections.algorithm import Algorithm, DroAlgorithm, MaxrlAlgorithm, ReinforceAlgorithm

NEVER = -math.inf
LOG = [math.log(r) for r in (0.1, 0.4, 0.3, 0.2)]


def section(text: str) -> Algorithm:
    """ "grpo scale=none" as a recipe's section."""
    kind, *options = text.split()
    settings = dict(o.split("=") for o in options)
    return TypeAdapter(Algorithm).validate_python({"kind": kind, **settings})


def one(text: str, log_rewards, **more) -> Coefficients:
    ((found,), _) = weigh(section(text), [Group("q7", tuple(log_rewards), **more)])
    return found


# --- by hand ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "selector", "generator"),
    [
        ("dro", (0.1, 0.4, 0.3, 0.2), (0.1, 0.4, 0.3, 0.2)),
        ("dro baseline=uniform", (-0.15, 0.15, 0.05, -0.05), (0.1, 0.4, 0.3, 0.2)),
        ("dro tau=2", None, None),
        ("maxrl", (-0.15, 0.15, 0.05, -0.05), (0.1, 0.4, 0.3, 0.2)),
        ("grpo scale=none", (-0.0375, 0.0375, 0.0125, -0.0125), (0.25,) * 4),
        ("rloo", (-0.05, 0.05, 0.05 / 3, -0.05 / 3), (0.25,) * 4),
        ("reinforce", (0.025, 0.1, 0.075, 0.05), (0.25,) * 4),
    ],
)
def test_coefficients_of_four_rewards(text, selector, generator):
    """Rewards 0.1, 0.4, 0.3, 0.2: mean 1/4, and they sum to 1."""
    if selector is None:
        roots = [math.sqrt(r) for r in (0.1, 0.4, 0.3, 0.2)]
        selector = generator = [r / sum(roots) for r in roots]
    found = one(text, LOG)
    assert found.selector == pytest.approx(selector)
    assert found.generator == pytest.approx(generator)


def test_grpo_divides_by_the_sample_deviation():
    """Rewards 1, 0, 0, 0: mean 1/4, sample deviation 1/2."""
    found = one("grpo", [0.0, NEVER, NEVER, NEVER])
    assert [4 * c for c in found.selector] == pytest.approx([0.75 / 0.5001] + [-0.25 / 0.5001] * 3)


def test_rloos_baseline_leaves_the_selection_out():
    """Rewards 1, 2, 6: the others' means are 4, 3.5 and 1.5 (arXiv 2402.14740, eq. 8)."""
    found = one("rloo maximise=log_reward", [1.0, 2.0, 6.0])
    assert [3 * c for c in found.selector] == pytest.approx([-3.0, -1.5, 4.5])


@pytest.mark.parametrize("kind", ["grpo scale=none", "rloo", "reinforce"])
def test_log_rewards_are_maximised_when_asked(kind):
    """-2, -6 by their logarithms: nothing is exponentiated."""
    found = one(f"{kind} maximise=log_reward", [-2.0, -6.0])
    wanted = {"grpo scale=none": (1.0, -1.0), "rloo": (2.0, -2.0), "reinforce": (-1.0, -3.0)}
    assert found.selector == pytest.approx(wanted[kind])


def test_independent_is_posterior_less_prior():
    """Scores 0.6, 0.2 renormalise to 3/4, 1/4; likelihoods 0.1, 0.3 make the posterior even."""
    logps = (math.log(0.6), math.log(0.2))
    found = one("independent", [math.log(0.1), math.log(0.3)], logps=logps)
    assert found.selector == pytest.approx((-0.25, 0.25))
    assert found.generator == pytest.approx((0.5, 0.5))


def test_ppo_sums_its_advantages_up():
    """Lambda 1: each token's advantage is the reward less the value before it."""
    values = ((0.1, 0.3), (0.0, 0.2, 0.4))
    found = one("ppo gae_lambda=1 normalise=false", [0.0, math.log(0.5)], values=values)
    assert found.tokens[0].advantages == pytest.approx((0.9, 0.7))
    assert found.tokens[1].advantages == pytest.approx((0.5, 0.3, 0.1))
    assert found.tokens[1].returns == pytest.approx((0.5, 0.5, 0.5))
    assert found.tokens[1].values == values[1]
    assert found.selector == pytest.approx((0.8 / 2, 0.3 / 2))


def test_ppo_normalises_over_all_tokens_of_an_iteration():
    """And leaves the returns, which are the value head's targets, as they are."""
    algorithm = section("ppo gae_lambda=1")
    groups = [Group("a", (0.0,), values=((0.5,),)), Group("b", (NEVER,), values=((0.5, 0.1, 0.2),))]
    weighed, _ = weigh(algorithm, groups)
    flat = [a for c in weighed for t in c.tokens for a in t.advantages]
    assert sum(flat) == pytest.approx(0, abs=1e-9)
    assert sum(a * a for a in flat) / 4 == pytest.approx(1, rel=1e-6)
    assert weighed[1].tokens[0].returns == pytest.approx((0, 0, 0))
    raw = [0.5, -0.5, -0.1, -0.2]
    deviation = math.sqrt(sum((a + 0.075) ** 2 for a in raw) / 4)
    assert flat == pytest.approx([(a + 0.075) / deviation for a in raw])
    assert weighed[1].selector == pytest.approx([sum(flat[1:]) / 3])
    assert ppo.normalise([ppo.coefficients(algorithm, groups[0])])[0].selector == (0.0,)


# --- rewards that say nothing -------------------------------------------------------------------


DRAW = random.Random(2)
EQUAL = [0.0, math.log(0.1), math.log(0.7), -2000.0, NEVER, *(DRAW.gauss(-5, 5) for _ in range(40))]


@pytest.mark.parametrize(
    "text", ["dro baseline=uniform", "maxrl", "grpo", "grpo scale=none", "rloo"]
)
def test_equal_rewards_move_no_selector(text):
    """Not at all: exactly 0, so that the learner skips the group and `rollout/idle` counts it."""
    moved = [(v, m) for v in EQUAL for m in (2, 3, 7, 8) if any(one(text, [v] * m).selector)]
    assert not moved


@pytest.mark.parametrize("text", ["dro", "dro baseline=uniform", "maxrl", "independent"])
def test_no_reward_at_all_moves_nothing(text):
    found = one(text, [NEVER] * 3, logps=(-1.0, -2.0, -3.0))
    assert found.selector == found.generator == (0.0,) * 3


@pytest.mark.parametrize("text", ["dro", "maxrl", "grpo", "rloo", "reinforce", "independent"])
def test_a_reward_of_0_is_a_number_like_others(text):
    found = one(text, [NEVER, -1.0, -2.0], logps=(-1.0, -2.0, -3.0))
    assert all(math.isfinite(c) for c in (*found.selector, *found.generator))
    assert found.selector[0] == min(found.selector)
    if text in ("dro", "maxrl", "independent"):
        assert found.generator[0] == 0


# --- rewards that cannot be used ----------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_is_an_error_that_names_the_example(value):
    with pytest.raises(UserError, match=f"example q7: its log-reward is {value}"):
        Group("q7", (0.0, value))


@pytest.mark.parametrize("kind", ["grpo", "rloo", "reinforce", "ppo"])
def test_the_logarithm_of_a_reward_of_0_is_an_error_that_names_the_example(kind):
    with pytest.raises(UserError, match="example q7: a selection's reward is 0, which has no log"):
        one(f"{kind} maximise=log_reward", [0.0, NEVER], values=((0.0,), (0.0,)))


@pytest.mark.parametrize("kind", ["grpo", "rloo", "reinforce", "ppo"])
def test_a_reward_too_large_for_a_number_is_an_error_that_says_how(kind):
    with pytest.raises(
        UserError, match="example q7: .*800 nats is too large.*maximise: log_reward"
    ):
        one(kind, [0.0, 800.0], values=((0.0,), (0.0,)))
    if kind != "ppo":
        assert all(map(math.isfinite, one(f"{kind} maximise=log_reward", [0.0, 800.0]).selector))


@pytest.mark.parametrize("shift", [-2000.0, 2000.0])
@pytest.mark.parametrize("text", ["dro", "dro baseline=uniform", "maxrl", "independent"])
def test_relative_rewards_alone_count_where_likelihoods_underflow(text, shift):
    """exp(-2000) is 0 and exp(2000) overflows, but their ratios are what matters."""
    logps = (-1.0, -2.0, -3.0, -4.0)
    near, far = one(text, LOG, logps=logps), one(text, [v + shift for v in LOG], logps=logps)
    assert far.selector == pytest.approx(near.selector, abs=1e-9)
    assert far.generator == pytest.approx(near.generator, abs=1e-9)


# --- off policy ---------------------------------------------------------------------------------

RATIOS = (math.log(2), math.log(0.5), 0.0)


def test_ratios_multiply_dros_weights():
    """r = 1/6, 2/6, 3/6 and p/q = 2, 1/2, 1: products 2, 1, 3 of 6."""
    logs = [math.log(r / 6) for r in (1, 2, 3)]
    assert one("dro", logs, log_ratios=RATIOS).selector == pytest.approx((2 / 6, 1 / 6, 3 / 6))
    centred = one("dro baseline=uniform", logs, log_ratios=RATIOS)
    prior = (2 / 3.5, 0.5 / 3.5, 1 / 3.5)
    assert centred.selector == pytest.approx(
        [w - b for w, b in zip((2 / 6, 1 / 6, 0.5), prior, strict=True)]
    )
    assert centred.generator == pytest.approx((2 / 6, 1 / 6, 3 / 6))


def test_ratios_multiply_reinforces_advantages_and_its_generators_shares():
    found = one("reinforce", [0.0, 0.0, math.log(0.5)], log_ratios=RATIOS)
    assert found.selector == pytest.approx((2 / 3, 0.5 / 3, 0.5 / 3))
    assert found.generator == pytest.approx((2 / 3, 0.5 / 3, 1 / 3))


def test_maxrl_is_dro_with_its_uniform_baseline():
    """On and off policy, with rewards of 0 among the others."""
    draw = random.Random(0)
    for _ in range(200):
        m = draw.randint(2, 9)
        logs = [draw.gauss(-20, 8) if draw.random() < 0.8 else NEVER for _ in range(m)]
        ratios = tuple(draw.gauss(0, 2) for _ in range(m)) if draw.random() < 0.5 else None
        ours = one("maxrl", logs, log_ratios=ratios)
        theirs = one("dro baseline=uniform", logs, log_ratios=ratios)
        assert ours.selector == pytest.approx(theirs.selector, abs=1e-12)
        assert ours.generator == pytest.approx(theirs.generator, abs=1e-12)


# --- DRO's floor under the effective sample size ------------------------------------------------


def test_a_floor_under_the_effective_sample_size_is_reached_and_not_exceeded():
    draw = random.Random(1)
    for _ in range(50):
        logs = [draw.gauss(-20, 6) for _ in range(8)]
        ratios = tuple(draw.gauss(0, 0.3) for _ in range(8)) if draw.random() < 0.5 else None
        weights = one("dro min_effective_sample_size=4", logs, log_ratios=ratios).selector
        plain = one("dro", logs, log_ratios=ratios).selector
        assert sum(weights) == pytest.approx(1)
        if effective_sample_size(plain) >= 4:
            assert weights == plain
        else:
            assert 4 <= effective_sample_size(weights) < 4.02
        if ratios is None:
            order = sorted(range(8), key=logs.__getitem__)
            assert order == sorted(range(8), key=weights.__getitem__)


def test_the_least_temperature_that_reaches_the_floor_is_taken():
    group = Group("q", (0.0, -10.0, -20.0))
    tau = tempered(group, 1.0, 2.0)
    assert effective_sample_size(importance_weights(group.log_rewards, None, tau)) >= 2
    assert effective_sample_size(importance_weights(group.log_rewards, None, tau / 1.01)) < 2
    assert tempered(group, 50.0, 2.0) == 50.0


def test_a_floor_that_rewards_of_0_keep_out_of_reach_leaves_the_others_nearly_equal():
    found = one("dro min_effective_sample_size=3", [0.0, -9.0, NEVER, NEVER])
    assert found.selector == pytest.approx((0.5, 0.5, 0, 0), abs=1e-3)
    assert one("dro min_effective_sample_size=2", [NEVER] * 4).selector == (0.0,) * 4


def test_a_floor_works_beside_a_temperature_and_a_baseline():
    logs = [-2.0, -40.0, -41.0, -44.0]
    algorithm = "dro baseline=uniform tau=per_token min_effective_sample_size=3"
    found = one(algorithm, logs, answer_tokens=2)
    assert sum(found.selector) == pytest.approx(0, abs=1e-9)
    assert 3 <= effective_sample_size(found.generator) < 3.02


# --- REINFORCE's running mean -------------------------------------------------------------------


def test_reinforces_baselines_are_of_other_questions():
    """Means 1, 2, 6: the others' are 4, 3.5 and 1.5; then 0.9 of the running mean and 0.1 of it."""
    assert reinforce.baselines([1.0, 2.0, 6.0], None, 0.9) == pytest.approx([4, 3.5, 1.5])
    later = reinforce.baselines([1.0, 2.0, 6.0], 10.0, 0.9)
    assert later == pytest.approx([9.4, 9.35, 9.15])
    assert reinforce.running_mean([1.0, 2.0, 6.0], None, 0.9) == pytest.approx(3)
    assert reinforce.running_mean([1.0, 2.0, 6.0], 10.0, 0.9) == pytest.approx(9.3)


def test_a_single_question_has_the_running_mean_alone():
    assert reinforce.baselines([5.0], None, 0.9) == [0.0]
    assert reinforce.baselines([5.0], 2.0, 0.9) == [2.0]


def test_the_running_mean_goes_from_iteration_to_iteration():
    algorithm = ReinforceAlgorithm(kind="reinforce", decay=0.5)
    groups = [Group("a", (0.0, NEVER)), Group("b", (NEVER, NEVER))]  # mean rewards 1/2 and 0
    first, mean = weigh(algorithm, groups)
    assert mean == pytest.approx(0.25)
    assert first[0].selector == pytest.approx((0.5, 0.0))
    assert first[1].selector == pytest.approx((-0.25, -0.25))
    second, mean = weigh(algorithm, groups, mean)
    assert mean == pytest.approx(0.25)
    assert second[0].selector == pytest.approx(((1 - 0.125) / 2, -0.125 / 2))
    assert second[1].selector == pytest.approx((-0.375 / 2,) * 2)


def test_algorithms_without_a_running_mean_pass_it_through():
    assert weigh(DroAlgorithm(), [Group("a", (0.0,))], 3.0)[1] == 3.0
    assert weigh(MaxrlAlgorithm(kind="maxrl"), [Group("a", (0.0, 1.0))])[1] is None
