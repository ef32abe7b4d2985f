"""The reward service: what it makes of rollouts, with the generator's likelihoods or answers."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from dro_rl.errors import UserError
from dro_rl.policy import causal_lm
from dro_rl.policy.weights import pack
from dro_rl.records import Example
from dro_rl.reward.service import RewardService
from dro_rl.sections.reward import RewardSection
from tests.models import token_logps
from tests.tiny import make_example, make_recipe, make_rollout

pytestmark = pytest.mark.unit


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


def test_a_broken_reward_names_the_example_of_the_rollout(folder, tmp_path):
    broken = tmp_path / "mine.py"
    broken.write_text(
        "from dro_rl.reward import Reward\n"
        "class Mine(Reward):\n"
        "    def score(self, outcomes): return [float('nan') for _ in outcomes]\n"
    )
    service = make_service(folder, str(broken))
    rollout = make_rollout(service.recipe, replace(make_example(), id="the-third"), [(0,)])
    with pytest.raises(UserError, match="reward Mine, example the-third"):
        service.score([rollout])


def test_ready_names_the_reward(folder):
    assert make_service(folder, "rewards/f1.py").ready() == {"reward": "rewards/f1.py"}
