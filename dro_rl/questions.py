"""The questions of a recipe, with their candidates."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from dro_rl.data import Split, load_examples
from dro_rl.policy.causal_lm import check_context, prompt_writer
from dro_rl.recipe import PolicyName, Recipe
from dro_rl.records import Example
from dro_rl.retrieval import add_candidates


def load_questions(recipe: Recipe) -> Split:
    """Training and held-out questions, each with its N candidates.

    Raises:
        UserError: bad data, an empty corpus, or fewer documents than a selection may hold.
    """
    split = load_examples(recipe.data, recipe.training.seed)
    everything = [*split.train, *split.evaluation]
    ready = add_candidates(
        everything,
        everything,
        recipe.retrieval,
        seed=recipe.training.seed,
        required=recipe.selector.documents,
    )
    return Split(ready[: len(split.train)], ready[len(split.train) :])


def check_prompts(recipe: Recipe, models: Mapping[PolicyName, str], questions: Split) -> None:
    """Refuse models and prompts that cannot work, before any process is started.

    Of the prompts, only the longest is tried: the question that has most characters which cannot
    be cut (its own and its titles').

    Raises:
        UserError: a model that cannot be read, or a context that is too short.
    """
    everything = [*questions.train, *questions.evaluation]
    longest = max(
        everything, key=lambda e: len(e.question) + sum(len(d.title) for d in e.candidates)
    )
    k = recipe.selector.documents
    for policy, model in models.items():
        section = recipe.policy(policy)
        check_context(section, model)
        writer = prompt_writer(section, model)
        if policy == "selector":
            writer.select(longest.question, longest.candidates, k)
        else:
            writer.answer(longest.question, longest.candidates[:k])


def questions_of(recipe: Recipe, train: Sequence[Example], iteration: int) -> list[Example]:
    """The questions of an iteration (1, 2, ...), in a shuffled order.

    Iterations walk through one stream of epochs, each a permutation of its own, so every question
    is seen equally often, and which ones an iteration takes depends on nothing but its number.
    """
    count = iteration_size(recipe, len(train))
    start = (iteration - 1) * count
    epochs = range(start // len(train), (start + count - 1) // len(train) + 1)
    order = [i for e in epochs for i in _permutation(recipe.training.seed, e, len(train))]
    offset = start - epochs[0] * len(train)
    return [train[i] for i in order[offset : offset + count]]


def iteration_size(recipe: Recipe, available: int) -> int:
    """How many questions an iteration takes."""
    wanted = recipe.training.questions_per_iteration
    return available if wanted == "all" else wanted


def seed_of(recipe: Recipe, purpose: str, iteration: int) -> int:
    """A seed that depends on the run's seed, what it is for and the iteration alone."""
    return random.Random(f"{purpose}/{recipe.training.seed}/{iteration}").getrandbits(30)


def _permutation(seed: int, epoch: int, size: int) -> list[int]:
    return random.Random(f"questions/{seed}/{epoch}").sample(range(size), size)
