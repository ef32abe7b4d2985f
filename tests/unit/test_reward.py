"""Rewards: how they are found and checked, and what the service makes of them."""

import math
import sys
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from dro_rl.errors import UserError
from dro_rl.policy import causal_lm
from dro_rl.policy.weights import pack
from dro_rl.records import Example, Outcome
from dro_rl.reward import Reward, load_reward
from dro_rl.reward.scoring import checked_log_rewards
from dro_rl.reward.service import RewardService
from dro_rl.sections.reward import RewardSection
from tests.models import token_logps
from tests.tiny import make_example, make_recipe, make_rollout

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


# --- the service --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


def make_service(folder, reward="rewards/answer_likelihood.py", **sections) -> RewardService:
    section = RewardSection(use=reward)
    recipe = make_recipe(folder, **sections).model_copy(update={"reward": section})
    return RewardService(recipe, recipe.generator.model)


def expected(service: RewardService, example: Example, documents, answer: str) -> float:
    """log p_g(answer | x, d_z) by a plain transformers forward of the folder's weights."""
    model = LlamaForCausalLM.from_pretrained(service.recipe.generator.model, dtype=torch.float32)
    writer = causal_lm.prompt_writer(service.recipe.generator, service.recipe.generator.model)
    prompt = writer.answer(example.question, [example.candidates[i] for i in documents]).token_ids
    return sum(token_logps(model.eval(), prompt, writer.completion(answer)))


CHOSEN = [(0, 1), (2,), (0, 1), (), (1, 0), (0, 1)]


def rollouts(service: RewardService):
    return [make_rollout(service.recipe, make_example(i), CHOSEN) for i in range(3)]


def test_scores_are_the_generators_likelihood_by_a_plain_forward(folder):
    service = make_service(folder)
    scored = service.score(rollouts(service))
    assert [s.rollout for s in scored] == rollouts(service)
    for s in scored:
        example = s.rollout.example
        want = [expected(service, example, d, example.answers[0]) for d in CHOSEN]
        assert s.log_rewards == pytest.approx(want, abs=1e-5)
        assert s.answer_tokens == 2  # one word and the end


def test_equal_selections_are_scored_once_and_count_as_often_as_drawn(folder, monkeypatch):
    service = make_service(folder)
    asked = []
    of = service.likelihood.of

    def counting(completions):
        asked.append(len(completions))
        return of(completions)

    monkeypatch.setattr(service.likelihood, "of", counting)
    scored = service.score(rollouts(service))
    assert sum(asked) == 3 * 4  # questions x distinct selections
    for s in scored:
        assert s.log_rewards[0] == s.log_rewards[2] == s.log_rewards[5]
        assert len(set(s.log_rewards)) == 4


def test_any_answer_is_the_logarithm_of_the_summed_likelihoods(folder):
    service = make_service(folder, generator={"answers": "any"})
    (scored,) = service.score(rollouts(service)[:1])
    example = scored.rollout.example
    for got, documents in zip(scored.log_rewards, CHOSEN, strict=True):
        parts = [expected(service, example, documents, a) for a in example.answers]
        assert got == pytest.approx(np.logaddexp(*parts), abs=1e-5)


def test_log_likelihoods_do_not_depend_on_the_reward(folder):
    likely = make_service(folder)
    exact = make_service(folder, "rewards/exact_match.py")
    want = [s.log_rewards for s in likely.score(rollouts(likely))]
    for got, row in zip(exact.log_likelihoods(rollouts(exact)), want, strict=True):
        assert got == pytest.approx(row, abs=1e-6)


def test_the_bound_asks_no_reward_server(folder):
    nobody = make_service(folder, "http://127.0.0.1:9/score")
    likely = make_service(folder)
    for got, want in zip(
        nobody.log_likelihoods(rollouts(nobody)), likely.score(rollouts(likely)), strict=True
    ):
        assert got == pytest.approx(want.log_rewards)


def test_answers_are_scored_by_the_selection_they_belong_to(folder):
    service = make_service(folder, "rewards/exact_match.py")
    (rollout,) = rollouts(service)[:1]
    right, wrong = rollout.example.answers[0], "nowhere"
    given = {(0, 1): right, (2,): wrong, (): wrong, (1, 0): right}
    (scored,) = service.score([rollout], [[given[d] for d in CHOSEN]])
    assert scored.log_rewards == (0, -math.inf, 0, -math.inf, 0, 0)
    assert scored.answer_tokens == 0


def test_the_micro_batch_changes_no_score(folder):
    one, three = (make_service(folder, training={"tokens_per_microbatch": n}) for n in (1, 300))
    for a, b in zip(one.score(rollouts(one)), three.score(rollouts(three)), strict=True):
        assert a.log_rewards == pytest.approx(b.log_rewards, abs=1e-5)


def test_new_weights_change_the_scores(folder):
    service = make_service(folder)
    before = service.score(rollouts(service))[0].log_rewards
    other = LlamaForCausalLM.from_pretrained(service.recipe.selector.model, dtype=torch.float32)
    service.load_weights(pack(other.state_dict().items()), 4)
    after = service.score(rollouts(service))[0].log_rewards
    assert max(abs(a - b) for a, b in zip(before, after, strict=True)) > 0.1
    section = service.recipe.generator.model_copy(update={"model": service.recipe.selector.model})
    fresh = RewardService(
        service.recipe.model_copy(update={"generator": section}), service.recipe.selector.model
    )
    assert after == pytest.approx(fresh.score(rollouts(fresh))[0].log_rewards, abs=1e-6)


@pytest.mark.parametrize("change", ["unknown", "missing"])
def test_weights_of_another_model_are_refused(folder, change):
    service = make_service(folder)
    weights = pack(service.model.state_dict().items())
    if change == "unknown":
        weights["model.layers.9.mlp.up_proj.weight"] = np.zeros((2, 2), np.float32)
    else:
        del weights["model.layers.0.mlp.up_proj.weight"]
    with pytest.raises(RuntimeError, match="up_proj"):
        service.load_weights(weights, 1)


def test_the_probe_gives_one_log_probability_a_token(folder):
    service = make_service(folder)
    rollout = make_rollout(service.recipe, make_example(), [(0,)])
    completion = service.writer.completion("Lyon")
    got = service.probe(rollout.prompt_ids, completion)
    model = LlamaForCausalLM.from_pretrained(service.recipe.generator.model, dtype=torch.float32)
    assert got == pytest.approx(token_logps(model.eval(), rollout.prompt_ids, completion), abs=1e-5)


def test_a_broken_reward_names_the_example_of_the_rollout(folder, write):
    service = make_service(folder, write(MINE.replace("0.5 for", "float('nan') for")))
    rollout = make_rollout(service.recipe, replace(make_example(), id="the-third"), [(0,)])
    with pytest.raises(UserError, match="reward Mine, example the-third"):
        service.score([rollout])


def test_ready_names_the_reward(folder):
    assert make_service(folder, "rewards/f1.py").ready() == {"reward": "rewards/f1.py"}


def test_a_reward_without_score_is_refused(tmp_path):
    path = tmp_path / "half.py"
    path.write_text("from dro_rl.reward import Reward\nclass Half(Reward):\n    pass\n")
    with pytest.raises(UserError, match=r"half\.py: Half must define score"):
        load_reward(str(path))
