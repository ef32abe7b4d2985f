"""A made-up world of any size: its questions, random policies that read it, selections of it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.shapes import make_model
from dro_rl.policy.scratch import train_tokenizer
from dro_rl.recipe import POLICIES, Recipe
from dro_rl.records import Document, Example, Rollout
from tests.tiny import make_rollout

_SYLLABLES = ("ba", "de", "fi", "go", "lu", "mer", "nol", "pas", "rit", "sun", "tek", "vo")
_WORDS = [a + b + c for a in _SYLLABLES for b in _SYLLABLES[:6] for c in _SYLLABLES[6:]]
_VOCABULARY = 1200  # of the tokenizer, enough for a token a word; the models' is larger


def make_example(number: int, documents: int, words: tuple[int, int]) -> Example:
    """A question of 10 words on documents of so many words each (least and most)."""
    draw = random.Random(number)

    def text(n: int) -> str:
        return " ".join(draw.choices(_WORDS, k=n))

    candidates = tuple(Document(text(2), text(draw.randint(*words))) for _ in range(documents))
    return Example(f"q{number}", text(10), (text(3),), candidates)


def save_model(folder: Path, size: str, dtype: str = "float32") -> None:
    """Random weights of a size of `benchmarks.shapes`, and a tokenizer that knows the world."""
    texts = [d.text for n in range(20) for d in make_example(n, 20, (60, 60)).candidates]
    train_tokenizer(texts, _VOCABULARY).save_pretrained(folder)
    make_model(size, "cpu").to(getattr(torch, dtype)).save_pretrained(folder)


def make_recipe(folder: Path, size: str = "5M", **sections: dict[str, Any]) -> Recipe:
    """Policies of a size of `benchmarks.shapes`, made in `folder`; `sections` add to a recipe's."""
    settings: dict[str, Any] = {
        "data": {"kind": "jsonl", "path": "unused.jsonl"},
        "retrieval": {"kind": "given", "candidates": 20},
        "cluster": {"mode": "local", "threads": 1},
    }
    for policy in POLICIES:
        save_model(folder / policy, size)
        settings[policy] = {
            "model": str(folder / policy),
            "dtype": "bfloat16" if size == "0.5B" else "float32",
            "max_length": 4096,
            "max_new_tokens": 24,
            "learning_rate": 1e-5,
        }
    for name, changes in sections.items():
        settings[name] = {**settings.get(name, {}), **changes}
    return Recipe.model_validate(settings)


def made_up_rollouts(recipe: Recipe, examples: Sequence[Example]) -> list[Rollout]:
    """What a flat selector that is never malformed would sample."""
    draw, k = random.Random(0), recipe.selector.documents
    return [
        make_rollout(
            recipe,
            e,
            [
                tuple(draw.sample(range(len(e.candidates)), k))
                for _ in range(recipe.algorithm.samples)
            ],
        )
        for e in examples
    ]
