"""How much work a step is, in counts that no machine changes: tokens that go through the model,
forward passes, logits. A regression in speed shows here first."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from dro_rl.learner import Learner
from dro_rl.records import Rollout, WeightedRollout
from dro_rl.reward.service import RewardService
from tests.tiny import make_example, make_recipe, make_rollout

QUESTIONS = 3  # whose first documents have nothing in common
CHOSEN = [(0, 1), (0, 2), (0, 1), (3, 0)]  # two share the first document, two are equal
SELECTIONS = 2 + 1 + 1 + 3  # tokens read: "[1] >", then "[2]" or "[3]"; "[4] > [1]"
LINE, QUESTION, ANSWER = 6, 9, 2  # tokens: "Kovac hometown [1]: Lyon.", "Question: ... Answer:"
LISTS = 3 * (2 * LINE + QUESTION + ANSWER - 1) - LINE  # of three different lists, two share a line
READ = 1  # a place of logits that transformers' own forward makes, each time


@dataclass
class Work:
    """Tokens of every forward pass, and places where logits were made."""

    tokens: list[int] = field(default_factory=list)
    places: int = 0


@contextmanager
def counted(model: Any) -> Iterator[Work]:
    work = Work()

    def body(module, args, kwargs):
        work.tokens.append(kwargs["input_ids"].numel())

    def head(module, args, logits):
        work.places += logits[..., 0].numel()

    hooks = [
        model.model.register_forward_pre_hook(body, with_kwargs=True),
        model.lm_head.register_forward_hook(head),
    ]
    yield work
    for hook in hooks:
        hook.remove()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


def make_batch(recipe) -> list[Rollout]:
    return [make_rollout(recipe, make_example(i), CHOSEN) for i in range(QUESTIONS)]


def step(folder, policy: str, budget: int) -> tuple[list[Rollout], Work]:
    """The second step, since the first one checks the packed forward against the plain one."""
    recipe = make_recipe(folder, training={"tokens_per_microbatch": budget})
    learner = Learner(recipe, policy, recipe.policy(policy).model, 20, 1e-3)
    rollouts = make_batch(recipe)
    batch = [WeightedRollout(r, (0.4, 0.3, 0.2, 0.1), (0.4, 0.3, 0.2, 0.1)) for r in rollouts]
    learner.step(batch)
    with counted(learner.model) as work:
        metrics = learner.step(batch)
    assert metrics.tokens == sum(work.tokens)
    return rollouts, work


def test_a_selector_step_reads_each_prompt_once(folder):
    rollouts, work = step(folder, "selector", budget=9999)
    assert work.tokens == [sum(len(r.prompt_ids) + SELECTIONS for r in rollouts)]
    assert work.places == READ + QUESTIONS * (1 + SELECTIONS)  # the prompt's end, every token read


def test_a_generator_step_reads_what_selections_begin_with_once(folder):
    _, work = step(folder, "generator", budget=9999)
    assert work.tokens == [QUESTIONS * LISTS]
    assert work.places == READ + QUESTIONS * 3 * ANSWER


def test_scoring_reads_what_a_generator_step_does(folder):
    recipe = make_recipe(folder, training={"tokens_per_microbatch": 9999})
    service, rollouts = RewardService(recipe, recipe.generator.model), make_batch(recipe)
    service.score(rollouts)
    with counted(service.model) as work:
        service.score(rollouts)
    assert work.tokens == [QUESTIONS * LISTS]
    assert work.places == READ + QUESTIONS * 3 * ANSWER


def test_a_pass_takes_as_many_whole_questions_as_the_budget_holds(folder):
    _, work = step(folder, "generator", budget=2 * LISTS)
    assert work.tokens == [2 * LISTS, LISTS]
    assert work.places == 2 * READ + QUESTIONS * 3 * ANSWER
