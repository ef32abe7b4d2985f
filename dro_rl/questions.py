"""The questions of a recipe, with their candidates."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from dro_rl.data import Split, load_examples
from dro_rl.errors import UserError
from dro_rl.policy import four_bit
from dro_rl.policy.causal_lm import prompt_writer
from dro_rl.policy.encoder_files import check_encoder
from dro_rl.prompts import PromptWriter, write_selection
from dro_rl.recipe import PolicyName, Recipe
from dro_rl.records import Document, Example
from dro_rl.retrieval import add_candidates
from dro_rl.sections.encoder import EncoderSelector
from dro_rl.tracking.console import Advance, Console


def load_questions(recipe: Recipe, console: Console) -> Split:
    """Training and held-out questions, each with its N candidates.

    Raises:
        UserError: bad data, an empty corpus, or fewer documents than a selection may hold.
    """
    split = load_examples(recipe.data, recipe.training.seed)
    everything = [*split.train, *split.evaluation]
    with console.stage("retrieve", len(everything), "questions") as advance:
        ready = with_candidates(recipe, everything, everything, advance, console.say)
    return Split(ready[: len(split.train)], ready[len(split.train) :])


def with_candidates(
    recipe: Recipe,
    examples: Sequence[Example],
    corpus: Sequence[Example],
    advance: Advance = lambda done: None,
    say: Callable[[str], object] = lambda text: None,
) -> list[Example]:
    """The examples with candidates, as the recipe retrieves; `corpus` are the questions whose
    documents are searched where the recipe names no corpus."""
    return add_candidates(
        examples,
        corpus,
        recipe.retrieval,
        seed=recipe.training.seed,
        required=recipe.selector.documents,
        advance=advance,
        say=say,
    )


def check_prompts(recipe: Recipe, models: Mapping[PolicyName, str], questions: Split) -> None:
    """Refuse models and prompts that cannot work, before any process is started.

    Raises:
        UserError: a model that cannot be read, a context that is too short, a question that does
            not fit it even with every document cut to its title, or a reference answer or a full
            selection that is longer than `max_new_tokens`; or a package that is missing.
    """
    k = recipe.selector.documents
    for policy in recipe.policies:
        section, model = recipe.policy(policy), models[policy]
        if isinstance(section, EncoderSelector):
            check_encoder(section, model)  # texts that are too long are cut, and counted
            continue
        four_bit.require(section)
        writer = prompt_writer(section, model)
        if policy == "selector":
            _check_longest_selection(recipe, writer)
        for example in (*questions.train, *questions.evaluation):
            if policy == "generator":
                _check_answers(recipe, writer, example)
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


def _check_longest_selection(recipe: Recipe, writer: PromptWriter) -> None:
    n, k = recipe.retrieval.candidates, recipe.selector.documents
    needed = len(writer.completion(write_selection(range(n - k, n))))
    room = recipe.causal_lm("selector")
    if needed > room.max_new_tokens:
        raise UserError(
            f"selector.max_new_tokens is {room.max_new_tokens}, and a selection of {k} documents "
            f"takes up to {needed} tokens: raise it"
        )


def _check_answers(recipe: Recipe, writer: PromptWriter, example: Example) -> None:
    room = recipe.generator.max_new_tokens
    asked = example.answers if recipe.generator.answers == "any" else example.answers[:1]
    for answer in asked:
        if len(answer.encode()) + 2 <= room:  # no more tokens than bytes, a space and an end
            continue
        needed = len(writer.completion(answer))
        if needed > room:
            raise UserError(
                f"example {example.id!r}: its answer {answer[:60]!r} has {needed} tokens, more "
                f"than generator.max_new_tokens ({room}): raise it, or drop the example"
            )


def questions_of(recipe: Recipe, train: Sequence[Example], iteration: int) -> list[Example]:
    """The questions of an iteration (1, 2, ...), in a shuffled order.

    Iterations walk through one stream of epochs, each a permutation of its own, so every question
    is seen equally often, and which ones an iteration takes depends on nothing but its number.
    With `retrieval.shuffle` an epoch has an order of candidates of its own too, so that a place in
    the prompt cannot be learned by heart.
    """
    size = len(train)
    first = (iteration - 1) * iteration_size(recipe, size)
    places = range(first, first + iteration_size(recipe, size))
    orders = {
        epoch: _permutation(recipe.training.seed, epoch, size)
        for epoch in {place // size for place in places}
    }
    taken = [(place // size, train[orders[place // size][place % size]]) for place in places]
    if not recipe.retrieval.shuffle:
        return [example for _, example in taken]
    return [_reordered(example, recipe.training.seed, epoch) for epoch, example in taken]


def _reordered(example: Example, seed: int, epoch: int) -> Example:
    """The example with the epoch's order of candidates; epoch 0 has the one they were given."""
    if epoch == 0:
        return example
    order = random.Random(f"candidates/{seed}/{epoch}/{example.id}").sample(
        range(len(example.candidates)), len(example.candidates)
    )
    return replace(
        example,
        candidates=tuple(example.candidates[i] for i in order),
        scores=tuple(example.scores[i] for i in order) if example.scores else (),
    )


def iteration_size(recipe: Recipe, available: int) -> int:
    """How many questions an iteration takes."""
    wanted = recipe.training.questions_per_iteration
    return available if wanted == "all" else wanted


def seed_of(recipe: Recipe, purpose: str, iteration: int) -> int:
    """A seed that depends on the run's seed, what it is for and the iteration alone."""
    return random.Random(f"{purpose}/{recipe.training.seed}/{iteration}").getrandbits(30)


def _permutation(seed: int, epoch: int, size: int) -> list[int]:
    return random.Random(f"questions/{seed}/{epoch}").sample(range(size), size)


def shares(examples: Sequence[Example], n: int) -> list[Sequence[Example]]:
    """`examples` in n parts, one a worker, that have about equally much to read; fewer parts where
    there are fewer questions.

    A part is a run of questions, so results joined in the parts' order are in that of the
    questions. Cuts are where the characters of questions and candidates come nearest to equal
    parts: no part exceeds its due by more than its longest question, and the cuts follow from the
    questions and n alone, not from which worker is free.
    """
    n = min(n, len(examples))
    read = [
        len(e.question) + sum(len(d.title) + len(d.text) for d in e.candidates) for e in examples
    ]
    until = [0, *itertools.accumulate(read)]
    cuts = [0]
    for part in range(1, n):
        due = until[-1] * part / n
        free = range(cuts[-1] + 1, len(examples) - (n - part) + 1)  # a question for every part
        cuts.append(min(free, key=lambda cut: abs(until[cut] - due)))
    return [examples[a:b] for a, b in itertools.pairwise([*cuts, len(examples)])] if n else []
