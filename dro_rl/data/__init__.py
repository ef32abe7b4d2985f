"""Data sets as Examples: `load_examples` is the way in, one file a data set."""

from __future__ import annotations

from dro_rl.data.hotpotqa import load_hotpotqa
from dro_rl.data.jsonl import load_jsonl
from dro_rl.data.split import Split
from dro_rl.data_sections import Data, FactsData, HotpotData

__all__ = ["Split", "load_examples"]


def load_examples(data: Data, seed: int) -> Split:
    """The questions to train on and the ones to evaluate on.

    `Example.candidates` are the documents that come with a question, unranked and as they come.
    `seed` decides the built-in world; files are read in their own order.

    Raises:
        UserError: a file is missing or bad, or the settings leave one side without questions.
    """
    if isinstance(data, FactsData):
        return _make_facts(data, seed)
    if isinstance(data, HotpotData):
        return load_hotpotqa(data)
    return load_jsonl(data)


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
