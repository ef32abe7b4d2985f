"""Rewards: how they are found, and how what they return is checked."""

import math
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch

from dro_rl.errors import UserError
from dro_rl.records import Example, Outcome
from dro_rl.reward import Reward, load_reward
from dro_rl.reward.scoring import checked_log_rewards

pytestmark = pytest.mark.unit

HEADER = "from dro_rl.reward import Reward\n"
MINE = f"""{HEADER}
class Mine(Reward):
    def score(self, outcomes): return [0.5 for _ in outcomes]
"""
EXAMPLE = Example("q17", "Where?", ("Lyon", "city of Lyon"))


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "mine.py") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


# --- finding one --------------------------------------------------------------------------------


def test_a_reward_is_loaded_from_a_file(write):
    reward = load_reward(write(MINE))
    assert reward.score([Outcome(EXAMPLE, ())]) == [0.5]


@pytest.mark.parametrize(
    ("name", "scale", "needs"),
    [
        ("rewards/answer_likelihood.py", "log", ("likelihood",)),
        ("rewards/exact_match.py", "linear", ("answer",)),
        ("f1.py", "linear", ("answer",)),
    ],
)
def test_a_shipped_reward_is_found_from_any_folder(name, scale, needs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    reward = load_reward(name)
    assert (reward.scale, reward.needs) == (scale, needs)


def test_a_reward_is_loaded_from_a_module(write, tmp_path, monkeypatch):
    write(MINE, "my_rewards_module.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert type(load_reward("my_rewards_module:Mine")).__name__ == "Mine"
    sys.modules.pop("my_rewards_module")


def test_a_reward_may_be_a_dataclass_with_postponed_annotations(write):
    text = f"""
from __future__ import annotations
from dataclasses import dataclass
{HEADER}
@dataclass
class Mine(Reward):
    bonus: float = 2.0
    def score(self, outcomes): return [self.bonus]
"""
    assert load_reward(write(text)).score([]) == [2.0]


def test_a_missing_file_lists_the_shipped_rewards():
    with pytest.raises(UserError, match="rewards/nothing.py: no such file.*rewards/f1.py"):
        load_reward("rewards/nothing.py")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("f1", "'f1': give a file such as rewards/f1.py, module:Class, or the address"),
        ("no_such_module_xyz:Mine", "no module no_such_module_xyz on the Python path"),
        ("dro_rl.no_such_module:Mine", "no module dro_rl.no_such_module on the Python path"),
        ("dro_rl.records:Missing", "dro_rl.records has no Reward class Missing"),
        ("dro_rl.records:Example", "dro_rl.records has no Reward class Example"),
    ],
)
def test_a_name_that_leads_nowhere_is_refused(name, told):
    with pytest.raises(UserError, match=told):
        load_reward(name)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x = 1\n", "must define exactly one Reward, and has none"),
        (HEADER, "must define exactly one Reward, and has none"),  # the imported one is not its own
        (MINE + MINE.replace("Mine", "Other"), "exactly one Reward, and has Mine, Other"),
    ],
)
def test_a_file_defines_exactly_one_reward(write, text, told):
    with pytest.raises(UserError, match=told):
        load_reward(write(text))


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('scale = "logarithmic"', 'scale must be "log" or "linear", not .logarithmic.'),
        ('needs = ("likelyhood",)', "needs must be a tuple of .*likelyhood"),
        ('needs = ("answer")', "needs must be a tuple of"),
    ],
)
def test_a_misspelt_declaration_is_refused_and_not_ignored(write, line, told):
    text = MINE.replace("    def", f"    {line}\n    def")
    with pytest.raises(UserError, match=f"reward Mine: {told}"):
        load_reward(write(text))


def test_an_error_inside_the_users_file_keeps_its_own_type(write):
    with pytest.raises(ZeroDivisionError):
        load_reward(write("1 / 0\n"))
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        load_reward(write("import no_such_dependency\n"))


def test_a_module_that_lacks_a_dependency_says_so_itself(write, tmp_path, monkeypatch):
    write("import no_such_dependency\n", "my_broken_module.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        load_reward("my_broken_module:Mine")


def test_a_reward_without_score_is_refused(tmp_path):
    path = tmp_path / "half.py"
    path.write_text("from dro_rl.reward import Reward\nclass Half(Reward):\n    pass\n")
    with pytest.raises(UserError, match=r"half\.py: Half must define score"):
        load_reward(str(path))


# --- what it returns ----------------------------------------------------------------------------


class Returns(Reward):
    def __init__(self, values, scale="linear"):
        self.values, self.scale = values, scale

    def score(self, outcomes):
        return self.values


OUTCOMES = [Outcome(EXAMPLE, (0,)), Outcome(EXAMPLE, (1,))]


def test_linear_rewards_become_logarithms_and_nothing_is_minus_infinity():
    got = checked_log_rewards(Returns([0.25, 0]), OUTCOMES)
    assert got == [math.log(0.25), -math.inf]


def test_log_rewards_stay_as_they_are():
    assert checked_log_rewards(Returns([-3.5, 2], "log"), OUTCOMES) == [-3.5, 2.0]


def test_any_real_number_will_do():
    values = [np.float32(0.5), Fraction(1, 2)]
    assert checked_log_rewards(Returns(values), OUTCOMES) == pytest.approx([math.log(0.5)] * 2)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([1.0], "must return a list of 2 numbers, one an outcome, and returned 1 values"),
        ([1.0, 1.0, 1.0], "returned 3 values"),
        (None, "returned NoneType"),
        (1.0, "returned float"),
        ((1.0, 1.0), "returned tuple"),
        (np.ones(2), "returned ndarray"),
        ([1.0, float("nan")], "returned nan, which is not a finite number"),
        ([1.0, float("inf")], "returned inf, which is not a finite number"),
        ([1.0, -float("inf")], "returned -inf, which is not a finite number"),
        ([1.0, True], "returned True, which is not a finite number"),
        ([1.0, None], "returned None, which is not a finite number"),
        ([1.0, "1"], "returned '1', which is not a finite number"),
        ([1.0, torch.tensor(1.0)], "returned tensor.*which is not a finite number"),
        ([1.0, -0.5], "returned -0.5; a linear reward must not be negative"),
    ],
)
def test_what_is_no_usable_number_is_refused_with_the_example(values, told):
    with pytest.raises(UserError, match=f"reward Returns, example q17.*{told}"):
        checked_log_rewards(Returns(values), OUTCOMES)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_log_rewards_must_be_numbers_too(value):
    with pytest.raises(UserError, match="example q17"):
        checked_log_rewards(Returns([value, 0.0], "log"), OUTCOMES)


def test_a_log_reward_of_minus_infinity_is_a_reward_of_0():
    got = checked_log_rewards(Returns([-float("inf"), -2.5], "log"), OUTCOMES)
    assert got == [-float("inf"), -2.5]
    assert got[0] == checked_log_rewards(Returns([0.0, 1.0], "linear"), OUTCOMES)[0]


def test_an_error_in_the_users_code_keeps_its_own_traceback(write):
    path = write(MINE.replace("[0.5 for _ in outcomes]", "outcomes[0].likelihood"))
    with pytest.raises(AttributeError) as told:
        checked_log_rewards(load_reward(path), OUTCOMES)
    assert str(told.traceback[-1].path) == path and told.traceback[-1].name == "score"


# --- the shipped ones ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "exact", "overlap"),
    [
        ("Lyon", 1, 1),
        ("the lyon.", 1, 1),
        ("City of Lyon", 1, 1),
        ("old Lyon", 0, 2 / 3),
        ("Oslo", 0, 0),
        ("", 0, 0),
    ],
)
def test_exact_match_and_f1_of_an_answer(answer, exact, overlap):
    outcome = Outcome(EXAMPLE, (0,), answer=answer)
    assert load_reward("rewards/exact_match.py").score([outcome]) == [exact]
    assert load_reward("rewards/f1.py").score([outcome]) == pytest.approx([overlap])
