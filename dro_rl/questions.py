"""The questions of a recipe, with their candidates."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from dro_rl.data import Split, load_examples
from dro_rl.policy.causal_lm import prompt_writer
from dro_rl.recipe import PolicyName, Recipe
from dro_rl.records import Document, Example
from dro_rl.retrieval import add_candidates
from dro_rl.tracking.console import Advance, Console


def load_questions(recipe: Recipe, console: Console) -> Split:
    """Training and held-out questions, each with its N candidates.

    Raises:
        UserError: bad data, an empty corpus, or fewer documents than a selection may hold.
    """
    split = load_examples(recipe.data, recipe.training.seed)
    everything = [*split.train, *split.evaluation]
    with console.stage("retrieve", len(everything), "questions") as advance:
        ready = with_candidates(recipe, everything, everything, advance)
    return Split(ready[: len(split.train)], ready[len(split.train) :])


def with_candidates(
    recipe: Recipe,
    examples: Sequence[Example],
    corpus: Sequence[Example],
    advance: Advance = lambda done: None,
) -> list[Example]:
    """The examples with candidates from the documents of `corpus`, as the recipe retrieves."""
    return add_candidates(
        examples,
        corpus,
        recipe.retrieval,
        seed=recipe.training.seed,
        required=recipe.selector.documents,
        advance=advance,
    )


def check_prompts(recipe: Recipe, models: Mapping[PolicyName, str], questions: Split) -> None:
    """Refuse models and prompts that cannot work, before any process is started.

    Raises:
        UserError: a model that cannot be read, a context that is too short, or a question that does
            not fit it even with every document cut to its title.
    """
    k = recipe.selector.documents
    for policy, model in models.items():
        section = recipe.policy(policy)
        writer = prompt_writer(section, model)
        for example in (*questions.train, *questions.evaluation):
            titles = [Document(d.title, "") for d in example.candidates]
            if policy == "generator":
                titles = sorted(titles, key=lambda d: -len(d.title))[:k]
            # No more tokens than bytes, 16 to mark a document and 128 of instruction: what surely
            # fits is not written, for a hundred thousand prompts take a minute.
            size = len(example.question.encode()) + sum(len(d.title.encode()) for d in titles)
            if size + 16 * len(titles) + 128 <= writer.max_tokens:
                continue
            if policy == "selector":
                writer.select(example.question, titles, k)
            else:
                writer.answer(example.question, titles)


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
