"""Supervised warm-up: what is learned, whatever the run will be trained with."""

import random
from dataclasses import replace

import pytest
import torch

from dro_rl.learner import Learner
from dro_rl.policy.targets import Target
from dro_rl.recipe import POLICIES
from dro_rl.records import Document
from dro_rl.warmup import _drawing, _learner, _supporting, generator_target, selector_target
from tests.tiny import make_example, make_policies, make_recipe


@pytest.mark.parametrize("kind", ["dro", "grpo", "rloo", "ppo", "independent"])
def test_the_selector_learns_its_teacher_whatever_the_algorithm(tmp_path, kind):
    recipe = make_recipe(tmp_path, algorithm={"kind": kind})
    learner = _learner(recipe, "selector", recipe.selector.model, 30, 1e-3)
    example = replace(make_example(), scores=(9.0, 0.0, 0.0, 0.0, -9.0))
    rng = random.Random(0)
    batch = [[selector_target(recipe, learner.writer, example, rng)] for _ in range(4)]
    losses = [learner.step_on(batch).loss for _ in range(15)]
    assert losses[-1] < losses[0] - 0.5


def test_documents_that_say_the_same_leave_room_for_the_rest_of_the_answer(tmp_path):
    """Of three gold documents, two state the first part: K = 2 must hold both parts."""
    documents = tuple(
        Document(f"{who} hometown", f"{city}.", is_gold)
        for who, city, is_gold in (
            ("Kovac", "Lyon", True),
            ("Silva", "Oslo", False),
            ("Kovac", "Lyon", True),
            ("Brandt", "Turin", True),
        )
    )
    example = replace(
        make_example(), candidates=documents, answers=("Lyon and Turin",), parts=("Lyon", "Turin")
    )
    assert _supporting(example) == [0, 3, 2]
    recipe = make_recipe(tmp_path)
    learner = _learner(recipe, "generator", recipe.generator.model, 1, 1e-3)
    target = generator_target(recipe, learner.writer, example, random.Random(0))
    (completion,) = target.completions
    prompt = learner.writer.decode(completion.prompt_ids)
    assert "Lyon" in prompt and "Turin" in prompt


def test_a_gradient_that_is_not_finite_changes_nothing_and_is_told(tmp_path):
    recipe = make_recipe(tmp_path)
    learner = Learner(recipe, "selector", recipe.selector.model, 1, 1e-3)
    before = {n: p.detach().clone() for n, p in learner.trainable.items()}
    example = replace(make_example(), scores=(9.0, 0.0, 0.0, 0.0, -9.0))
    target = selector_target(recipe, learner.writer, example, random.Random(0))
    told = learner.step_on([[Target(target.completions, coefficient=float("nan"))]])
    assert told.bad_steps == 1
    assert all(torch.equal(p, before[n]) for n, p in learner.trainable.items())


def test_a_shared_base_learns_both_tasks_and_a_scratch_one_with_all_its_weights(tmp_path):
    lora = {"lora": {"rank": 4}, "max_length": 200, "init": "scratch"}
    base = {"model": str(make_policies(tmp_path)["selector"]), **lora}
    recipe = make_recipe(
        tmp_path,
        selector=base,
        generator={**base, "max_length": 100, "share_base_with": "selector"},
    )
    examples = [replace(make_example(i), scores=(9.0, 0.0, 0.0, 0.0, -9.0)) for i in range(3)]
    draw = _drawing(recipe, POLICIES, recipe.selector.model, examples)
    learner = _learner(recipe, "selector", recipe.selector.model, 30, 1e-3)
    completions = [learner.writer.decode(draw().completions[0].token_ids) for _ in range(40)]
    selections = sum("[" in text for text in completions)
    assert 10 < selections < 30
    assert any("embed_tokens" in name for name in learner.trainable)
    batch = [[draw()] for _ in range(8)]
    losses = [learner.step_on(batch).loss for _ in range(15)]
    assert losses[-1] < losses[0] - 0.5
