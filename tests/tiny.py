"""A tiny experiment for tests: a word-level world, random Llamas, and a recipe that joins them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import cache
from itertools import permutations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from dro_rl.policy import causal_lm
from dro_rl.prompts import PromptWriter
from dro_rl.recipe import Recipe
from dro_rl.records import Document, Example, Rollout, Selection
from dro_rl.sections.policy import PolicySection
from tests.models import make_llama, make_word_tokenizer

if TYPE_CHECKING:
    from dro_rl.learner import Learner

CITIES = ("Lyon", "Oslo", "Turin", "Ghent", "Porto", "Basel")
PEOPLE = ("Kovac", "Silva", "Brandt", "Orsa", "Keld", "Salter")
_WRITERS: dict[str, PromptWriter] = {}
_MADE = TemporaryDirectory(prefix="dro-rl-tests-")
WORDS = [*CITIES, *PEOPLE, "hometown", "Name", "the", "and", "Where"]


def make_policies(folder: Path, scale: float = 3.0) -> dict[str, Path]:
    """Two tiny models in `folder`, where they are not there yet; see `make_llama` for `scale`."""
    models = {policy: folder / policy for policy in ("selector", "generator")}
    for seed, place in enumerate(models.values()):
        if not place.exists():
            shutil.copytree(_made(seed, scale), place)
    return models


@cache
def _made(seed: int, scale: float) -> Path:
    """A model that is made once and copied to where a test wants one."""
    folder = Path(_MADE.name) / f"{seed}-{scale}"
    tokenizer = make_word_tokenizer(WORDS, identifiers=8)
    make_llama(folder, tokenizer=tokenizer, hidden=32, seed=seed, context=256, scale=scale)
    return folder


def make_recipe(folder: Path, **sections: dict[str, Any]) -> Recipe:
    """A valid recipe of two tiny models made in `folder`; `sections` override."""
    models = make_policies(folder)
    policy = {"dtype": "float32", "max_length": 256, "max_new_tokens": 8, "learning_rate": 1e-3}
    settings: dict[str, dict[str, Any]] = {
        "data": {"kind": "jsonl", "path": "unused.jsonl"},
        "retrieval": {"kind": "given", "candidates": 5},
        "selector": {"model": str(models["selector"]), "documents": 2, **policy},
        "generator": {"model": str(models["generator"]), **policy},
        "rollout": {"engine": "transformers"},
        "algorithm": {"samples": 4},
        "training": {"batch_size": 4, "tokens_per_microbatch": 100, "max_grad_norm": 1e9},
        "cluster": {"mode": "local"},
    }
    for name, changes in sections.items():
        settings[name] = {**settings.get(name, {}), **changes}
    return Recipe.model_validate(settings)


def make_example(number: int = 0, documents: int = 5) -> Example:
    """A question about the person of document 0."""
    people = [PEOPLE[(number + i) % len(PEOPLE)] for i in range(documents)]
    cities = [CITIES[(2 * number + i) % len(CITIES)] for i in range(documents)]
    candidates = tuple(
        Document(f"{p} hometown", f"{c}.", is_gold=i == 0)
        for i, (p, c) in enumerate(zip(people, cities, strict=True))
    )
    return Example(
        f"q{number}", f"Name the {people[0]} hometown.", (cities[0], cities[1]), candidates
    )


def make_rollout(recipe: Recipe, example: Example, chosen: list[tuple[int, ...]]) -> Rollout:
    """A rollout whose selections name `chosen`, as if each token had been sampled at 1/e."""
    from dro_rl.prompts import write_selection

    writer = _writer(recipe.causal_lm("selector"))
    prompt = writer.select(example.question, example.candidates, recipe.selector.documents)
    selections = []
    for documents in chosen:
        text = write_selection(documents)
        ids = writer.completion(text)
        selections.append(Selection(text, ids, (-1.0,) * len(ids), documents, False))
    return Rollout(example, prompt.token_ids, tuple(selections), 0)


def _writer(section: PolicySection) -> PromptWriter:
    """Made once of equal settings: most tests make several rollouts."""
    key = section.model_dump_json()
    if key not in _WRITERS:
        _WRITERS[key] = causal_lm.prompt_writer(section, section.model)
    return _WRITERS[key]


def all_selections(n: int = 5, k: int = 2) -> list[tuple[int, ...]]:
    """The documents of every well-formed selection: 1 to k of n, in every order."""
    return [p for size in range(1, k + 1) for p in permutations(range(n), size)]


def as_sampled(learner: Learner, rollout: Rollout) -> Rollout:
    """The rollout with the log-probability that the selector's learner now gives each token."""
    selections = []
    for s in rollout.selections:
        completion = learner.objective.selection(rollout, s.token_ids)
        with learner.objective.reading():
            logps = learner.objective.likelihood.tokens([completion])[0]
        selections.append(replace(s, logps=tuple(logps.tolist())))
    return replace(rollout, selections=tuple(selections))
