"""Data sets as Examples: `load_examples` is the way in, one file a data set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dro_rl.data import (
    dro,
    hotpotqa,
    jsonl,
    musique,
    natural_questions,
    wikimultihop,
    wizard_of_wikipedia,
)
from dro_rl.data.load import Layout, load, read_examples
from dro_rl.data.split import Split, overlaps
from dro_rl.records import Example
from dro_rl.sections.data import Data, FactsData, FileData

__all__ = ["Split", "load_examples", "overlaps", "read_file"]

_LAYOUTS: dict[str, Callable[[Any], Layout]] = {
    "hotpotqa": hotpotqa.layout,
    "musique": musique.layout,
    "wikimultihop": wikimultihop.layout,
    "natural_questions": natural_questions.layout,
    "wizard_of_wikipedia": wizard_of_wikipedia.layout,
    "dro": dro.layout,
    "jsonl": jsonl.layout,
}


def load_examples(data: Data, seed: int) -> Split:
    """The questions to train on and the ones to evaluate on.

    `Example.candidates` are the documents that come with a question, unranked and as they come.
    `seed` decides the built-in world; files are read in their own order.

    Raises:
        UserError: a file is missing or bad, the settings leave one side without questions, or a
            question is on both sides.
    """
    if isinstance(data, FactsData):
        return _make_facts(data, seed)
    return load(data, _LAYOUTS[data.kind](data))


def read_file(data: FileData) -> list[Example]:
    """All questions of the file `path`, whatever the other settings say of train and evaluation.

    Raises:
        UserError: it is missing or bad.
    """
    return list(read_examples(data, _LAYOUTS[data.kind](data), data.path, ""))


def _make_facts(data: FactsData, seed: int) -> Split:
    from dro_rl.data.facts.world import make_examples

    def make(count: int, split: str):
        return make_examples(
            count,
            seed,
            documents=data.documents,
            rumours=data.rumours,
            echoes=data.echoes,
            value_words=data.value_words,
            split=split,
        )

    return Split(make(data.train_questions, "train"), make(data.evaluation_questions, "evaluation"))
