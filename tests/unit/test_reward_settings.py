"""What a recipe may say of its reward: settings, weighted sums, and what is refused."""

import math
from pathlib import Path

import pytest

from dro_rl.comparison.spec import load_comparison
from dro_rl.errors import UserError
from dro_rl.recipe_file import load_recipe, localise
from dro_rl.records import Example, Outcome
from dro_rl.reward import Reward, load_reward
from dro_rl.reward.checks import checked_scores
from dro_rl.reward.weighted_sum import Term, WeightedSum
from dro_rl.start import scores_while_learning

pytestmark = pytest.mark.unit

MINE = """
from __future__ import annotations
from dataclasses import dataclass
from typing import Literal
from dro_rl.reward import Reward

@dataclass
class Mine(Reward):
    bonus: float
    way: Literal["up", "down"] = "up"
    words: tuple[str, ...] = ()

    def score(self, outcomes):
        return [self.bonus if self.way == "up" else -self.bonus for _ in outcomes]
"""
PLAIN = """
from dro_rl.reward import Reward

class Plain(Reward):
    def __init__(self, floor: int = 3, anything=None, **rest):
        self.floor = floor

    def score(self, outcomes):
        return [float(self.floor) for _ in outcomes]
"""


@pytest.fixture
def mine(tmp_path) -> str:
    (tmp_path / "mine.py").write_text(MINE)
    return str(tmp_path / "mine.py")


def reward_of(*overrides: str) -> Reward:
    return load_reward(load_recipe("recipes/demo.yaml", overrides).reward)


# --- settings -----------------------------------------------------------------------------------


def test_settings_go_to_the_rewards_constructor(mine):
    reward = reward_of(f"reward={{use: {mine}, bonus: 2, way: down, words: [a, b]}}")
    assert vars(reward) == {"bonus": 2.0, "way": "down", "words": ("a", "b")}


def test_a_setting_may_be_overridden_alone(mine):
    assert vars(reward_of(f"reward={mine}", "reward.bonus=0.5"))["bonus"] == 0.5


def test_a_plain_constructor_has_settings_too(tmp_path):
    (tmp_path / "plain.py").write_text(PLAIN)
    given = f"{{use: {tmp_path / 'plain.py'}, floor: 5}}"
    assert reward_of(f"reward={given}").score([None]) == [5.0]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ("bonnus: 2", "unknown setting 'bonnus'; did you mean bonus?"),
        ("xyz: 2", "unknown setting 'xyz'; it has bonus, way, words"),
        ("way: up", "the setting 'bonus' is required"),
        ("bonus: much", "bonus: Input should be a valid number.*given: 'much'"),
        ("bonus: true", "bonus is not a switch, and cannot be true"),
        ("bonus: 1, way: left", "way: Input should be 'up' or 'down'"),
        ("bonus: 1, words: [1]", "words.0: Input should be a valid string"),
    ],
)
def test_a_wrong_setting_is_named_with_the_file(mine, settings, told):
    with pytest.raises(UserError, match=f"reward {mine}: Mine: {told}"):
        reward_of(f"reward={{use: {mine}, {settings}}}")


def test_a_reward_without_settings_says_so():
    with pytest.raises(UserError, match="exact_match.py.*unknown setting 'beta'; it has none"):
        reward_of("reward={use: rewards/exact_match.py, beta: 2}")


def test_the_bounds_of_a_shipped_setting_are_checked():
    with pytest.raises(UserError, match="beta: Input should be greater than 0"):
        reward_of("reward={use: rewards/f1.py, beta: 0}")


def test_a_setting_may_not_have_a_name_of_the_recipe(tmp_path):
    (tmp_path / "mine.py").write_text(MINE.replace("bonus", "weight"))
    with pytest.raises(UserError, match="a setting may not be called 'weight'"):
        reward_of(f"reward={{use: {tmp_path / 'mine.py'}}}")


@pytest.mark.parametrize(
    ("reward", "told"),
    [
        ("3", "reward: write a file such as rewards/f1.py"),
        ("{beta: 2}", "reward.use: is required"),
        ("{use: 3}", "reward.use: Input should be a valid string"),
        ("[]", "reward: List should have at least 1 item"),
        ("[{use: rewards/f1.py, weight: 0}]", "reward.0.weight: Input should be greater than 0"),
        ("[{use: rewards/f1.py, weight: -1}]", "reward.0.weight: Input should be greater than 0"),
        ("[{use: rewards/f1.py, weight: .inf}]", "reward.0.weight: Input should be a finite"),
        ("[{use: rewards/f1.py, scale: ln}]", "reward.0.scale: Input should be 'log' or 'linear'"),
    ],
)
def test_what_is_no_reward_at_all_is_refused_with_the_key(reward, told):
    with pytest.raises(UserError, match=told):
        load_recipe("recipes/demo.yaml", [f"reward={reward}"])


def test_a_base_recipes_settings_stay_with_its_reward(tmp_path):
    base = tmp_path / "base.yaml"
    base.write_text("extends: demo.yaml\nreward: {use: rewards/f1.py, beta: 2}\n")
    for own, want in (
        ("{beta: 3}", {"use": "rewards/f1.py", "beta": 3}),
        ("{use: rewards/rouge_l.py}", {"use": "rewards/rouge_l.py"}),
        ("rewards/rouge_l.py", {"use": "rewards/rouge_l.py"}),
        ("rewards/f1.py", {"use": "rewards/f1.py"}),
    ):
        (tmp_path / "child.yaml").write_text(f"extends: base.yaml\nreward: {own}\n")
        recipe = load_recipe(str(tmp_path / "child.yaml"))
        assert recipe.resolved()["reward"] == want


def test_files_of_all_terms_become_absolute(mine):
    terms = "[rewards/f1.py, {use: 'my.module:Mine'}, {use: 'http://host/rewards/f1.py'}]"
    recipe = localise(load_recipe("recipes/demo.yaml", [f"reward={terms}"]))
    assert isinstance(recipe.reward, list)
    file, module, url = (r.use for r in recipe.reward)
    assert Path(file).is_absolute() and file.endswith("rewards/f1.py")
    assert (module, url) == ("my.module:Mine", "http://host/rewards/f1.py")
    assert localise(recipe) == recipe


def test_an_annotation_that_is_not_there_is_named(tmp_path):
    (tmp_path / "mine.py").write_text(MINE.replace("import Literal", "import Any"))
    with pytest.raises(UserError, match="mine.py: Mine: .*name 'Literal' is not defined"):
        reward_of(f"reward={{use: {tmp_path / 'mine.py'}, bonus: 1}}")


def test_arms_of_a_comparison_may_differ_in_everything_a_reward_says(tmp_path):
    (tmp_path / "arms.yaml").write_text(
        "base: demo.yaml\nseeds: [0]\noutput: out\n"
        "settings: {reward: {use: rewards/f1.py, beta: 2}}\n"
        "arms:\n"
        "  f2: {}\n"
        "  f3: {reward: {beta: 3}}\n"
        "  rouge: {reward: rewards/rouge_l.py}\n"
        "  both: {reward: [rewards/f1.py, {use: rewards/rouge_l.py, weight: 0.5}]}\n"
    )
    arms = {a.name: a.shown["reward"] for a in load_comparison(str(tmp_path / "arms.yaml")).arms}
    assert arms["f2"] == {"use": "rewards/f1.py", "beta": 2}
    assert arms["f3"] == {"use": "rewards/f1.py", "beta": 3}
    assert arms["rouge"] == {"use": "rewards/rouge_l.py"}
    assert [(t["use"], t["weight"]) for t in arms["both"]] == [
        ("rewards/f1.py", 1.0),
        ("rewards/rouge_l.py", 0.5),
    ]


# --- files that are broken ----------------------------------------------------------------------


def test_a_syntax_error_is_one_message_with_its_line(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("from dro_rl.reward import Reward\nclass Mine(Reward)\n    pass\n")
    with pytest.raises(UserError) as told:
        load_reward(str(path))
    assert f"{path}, line 2: expected ':'" in str(told.value)
    assert "class Mine(Reward)" in str(told.value)


@pytest.mark.parametrize("content", [b"\x80\x81 = 1\n", b"x = '\x00'\n"])
def test_a_file_that_is_no_text_is_one_message(tmp_path, content):
    (tmp_path / "mine.py").write_bytes(content)
    with pytest.raises(UserError, match="mine.py"):
        load_reward(str(tmp_path / "mine.py"))


# --- sums ---------------------------------------------------------------------------------------

OUTCOMES = [Outcome(Example("q17", "?", ("Lyon",)), (0,)), Outcome(Example("q9", "?", ("x",)), ())]


class Returns(Reward):
    def __init__(self, values, scale="linear", needs=()):
        self.values, self.scale, self.needs = values, scale, needs

    def score(self, outcomes):
        return self.values


def test_linear_rewards_add_up():
    total = WeightedSum([Term(Returns([1.0, 0.0]), 0.7), Term(Returns([0.5, 0.0]), 0.3)])
    assert total.scale == "linear"
    assert total.score(OUTCOMES) == pytest.approx([0.85, 0.0])


def test_log_rewards_multiply_as_powers_and_0_wins():
    one, other = Returns([-2.0, -math.inf], "log"), Returns([-1.0, 3.0], "log")
    total = WeightedSum([Term(one, 0.5), Term(other, 2.0)])
    assert total.scale == "log"
    assert total.score(OUTCOMES) == pytest.approx([-3.0, -math.inf])


def test_a_term_may_be_converted_to_the_others_scale():
    likelihood, share = Returns([-2.0, -1.0], "log"), Returns([0.5, 0.0])
    product = WeightedSum([Term(likelihood, 1.0), Term(share, 2.0, "log")])
    assert product.score(OUTCOMES) == pytest.approx([-2 + 2 * math.log(0.5), -math.inf])
    total = WeightedSum([Term(likelihood, 1.0, "linear"), Term(share, 2.0)])
    assert total.score(OUTCOMES) == pytest.approx([math.exp(-2) + 1, math.exp(-1)])


def test_scales_are_not_mixed_unawares():
    with pytest.raises(UserError, match="AnswerLikelihood is log, F1 is linear.*`scale: log`"):
        reward_of("reward=[rewards/answer_likelihood.py, rewards/f1.py]")


def test_a_likelihood_too_large_for_a_linear_sum_is_named():
    total = WeightedSum([Term(Returns([0.0, 1000.0], "log"), 1.0, "linear")])
    with pytest.raises(UserError, match=r"example q9 \(.*\): a log-reward of 1000 nats is too"):
        total.score(OUTCOMES)


def test_a_broken_term_is_named_with_the_example():
    total = WeightedSum([Term(Returns([1.0, 1.0]), 1.0), Term(Returns([1.0, math.nan]), 1.0)])
    with pytest.raises(UserError, match="reward Returns, example q9 .*returned nan"):
        total.score(OUTCOMES)


def test_a_sum_needs_what_its_terms_need():
    reward = reward_of(
        "reward=[{use: rewards/f1.py, beta: 2, weight: 0.7}, rewards/gold_recall.py, "
        "rewards/exact_match.py]"
    )
    assert isinstance(reward, WeightedSum)
    assert (reward.scale, reward.needs) == ("linear", ("answer",))
    assert [t.weight for t in reward.terms] == [0.7, 1.0, 1.0]


def test_only_what_follows_from_likelihoods_here_is_scored_while_learning():
    recipe = load_recipe("recipes/demo.yaml")
    penalised = "[rewards/answer_likelihood.py, rewards/length_penalty.py]"
    assert scores_while_learning(recipe, reward_of(f"reward={penalised}"))
    asks = Returns([], "log", ("likelihood",))
    assert scores_while_learning(recipe, asks)
    asks.remote = True
    assert not scores_while_learning(recipe, asks)


# --- what it raises -----------------------------------------------------------------------------

RAISES = """
from dro_rl.reward import Reward

class Raises(Reward):
    def score(self, outcomes):
        return [1 / len(o.documents) for o in outcomes]
"""


def test_a_reward_that_raises_keeps_its_traceback_and_the_example_is_named(tmp_path, capsys):
    path = tmp_path / "raises.py"
    path.write_text(RAISES)
    with pytest.raises(ZeroDivisionError) as told:
        checked_scores(load_reward(str(path)), OUTCOMES)
    assert str(told.traceback[-2].path) == str(path)
    said = capsys.readouterr().err
    assert said == "reward Raises raised on example q9 (selection of no document)\n"


def test_a_term_that_raises_is_named_once(tmp_path, capsys):
    path = tmp_path / "raises.py"
    path.write_text(RAISES)
    with pytest.raises(ZeroDivisionError):
        checked_scores(reward_of(f"reward=[rewards/gold_recall.py, {path}]"), OUTCOMES)
    said = capsys.readouterr().err
    assert said == "reward WeightedSum raised on example q9 (selection of no document)\n"
