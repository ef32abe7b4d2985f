"""Intervals against cases computed by hand, and how often they hold the truth."""

import numpy as np
import pytest

from dro_rl.errors import UserError
from dro_rl.evaluation.significance import Difference, paired_bootstrap, t_half_width

pytestmark = pytest.mark.unit


def scores(values) -> dict[str, float]:
    return {f"q{i}": float(v) for i, v in enumerate(values)}


# --- Student's t ----------------------------------------------------------------------------------


def test_three_seeds_by_hand():
    """s = 1, n = 3, t_{0.975, 2} = 4.3027 (any table)."""
    assert t_half_width([1, 2, 3]) == pytest.approx(4.3027 / 3**0.5, abs=1e-4)


def test_two_seeds_by_hand():
    """s = sqrt(2), n = 2, t_{0.975, 1} = 12.706: half the width is 12.706."""
    assert t_half_width([10, 12]) == pytest.approx(12.706, abs=1e-3)


def test_one_seed_has_no_interval_and_none_is_an_error():
    assert t_half_width([0.5]) is None
    with pytest.raises(ValueError):
        t_half_width([])


def test_the_t_interval_holds_the_mean_in_95_percent():
    """4000 samples of 4: the standard error of the share is 0.0034."""
    draws = np.random.default_rng(0).normal(5, 2, (4000, 4))
    held = [abs(row.mean() - 5) <= (t_half_width(list(row)) or 0) for row in draws]
    assert np.mean(held) == pytest.approx(0.95, abs=0.012)


# --- the paired bootstrap -------------------------------------------------------------------------


def test_the_mean_is_other_minus_first_with_every_seed_counting_alike():
    one = (scores([0, 0]), scores([1, 1]))  # +1 on two questions
    many = (scores([1] * 8), scores([1] * 8))  # 0 on eight
    assert paired_bootstrap([one, many]).mean == 0.5


def test_a_constant_difference_has_an_interval_of_no_width():
    first = np.random.default_rng(0).normal(size=50)
    found = paired_bootstrap([(scores(first), scores(first + 0.25))])
    assert (found.mean, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25))
    assert found.excludes_zero


def test_two_questions_by_hand():
    """Differences 0 and 1: the mean of two draws is 0, 1/2, 1 with chances 1/4, 1/2, 1/4."""
    found = paired_bootstrap([(scores([0, 0]), scores([0, 1]))])
    assert (found.mean, found.low, found.high) == (0.5, 0.0, 1.0)
    assert not found.excludes_zero


def test_the_interval_is_that_of_the_normal_law_for_many_questions():
    """Half the width is 1.96 s / sqrt(n); with two equal strata, that over sqrt(2)."""
    rng = np.random.default_rng(1)
    n, s = 1000, 2.0
    pair = [(scores(np.zeros(n)), scores(rng.normal(0.3, s, n))) for _ in range(2)]
    expected = 1.96 * s / n**0.5
    one, both = paired_bootstrap(pair[:1]), paired_bootstrap(pair)
    assert (one.high - one.low) / 2 == pytest.approx(expected, rel=0.06)
    assert (both.high - both.low) / 2 == pytest.approx(expected / 2**0.5, rel=0.06)


def test_questions_are_drawn_within_each_seed():
    """Seeds that differ by a constant each: between them there is nothing to draw."""
    pairs = [(scores(np.zeros(30)), scores(np.full(30, d))) for d in (-1.0, 1.0)]
    found = paired_bootstrap(pairs)
    assert (found.mean, found.low, found.high) == (0, 0, 0)
    assert not found.excludes_zero


def test_scores_are_matched_by_question_and_not_by_order():
    first = {"a": 1.0, "b": 5.0, "c": 9.0}
    other = {"c": 10.0, "a": 2.0, "b": 6.0}
    found = paired_bootstrap([(first, other)])
    assert (found.low, found.high) == (1, 1)


def test_the_order_of_questions_does_not_matter():
    rng = np.random.default_rng(4)
    first, other = scores(rng.normal(size=40)), scores(rng.normal(size=40))
    turned = dict(reversed(first.items()))
    assert paired_bootstrap([(turned, other)]) == paired_bootstrap([(first, other)])


def test_the_bootstrap_interval_holds_the_difference_in_about_95_percent():
    """300 samples of 60 questions, paired scores that share most of their noise."""
    rng = np.random.default_rng(2)
    held = []
    for _ in range(300):
        shared = rng.normal(0, 3, 60)
        first, other = shared + rng.normal(0, 1, 60), shared + 0.4 + rng.normal(0, 1, 60)
        found = paired_bootstrap([(scores(first), scores(other))], resamples=500)
        held.append(found.low <= 0.4 <= found.high)
    assert 0.90 <= np.mean(held) <= 0.98


def test_the_interval_does_not_depend_on_how_many_draws_are_held_at_once(monkeypatch):
    from dro_rl.evaluation import significance

    rng = np.random.default_rng(3)
    pair = [(scores(rng.normal(size=100)), scores(rng.normal(size=100)))]
    whole = paired_bootstrap(pair)
    monkeypatch.setattr(significance, "_CELLS", 700)
    assert paired_bootstrap(pair) == whole == paired_bootstrap(pair)


def test_what_is_left_of_rounding_is_no_difference():
    assert not Difference(1e-17, 1e-18, 1e-17).excludes_zero
    assert Difference(-0.2, -0.3, -0.1).excludes_zero


@pytest.mark.parametrize(
    ("pairs", "told"),
    [
        ([], "no seed that both arms have"),
        ([({}, {})], "no questions"),
        ([({"a": 1.0, "b": 1.0}, {"a": 1.0})], "'b'"),
        ([({"a": 1.0}, {"a": 1.0, "late": 1.0})], "'late'"),
    ],
)
def test_what_cannot_be_paired_is_refused(pairs, told):
    with pytest.raises(UserError, match=told):
        paired_bootstrap(pairs)
