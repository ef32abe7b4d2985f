"""Questions about animals, and settings of retrieval."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dro_rl.records import Document, Example
from dro_rl.retrieval import open_retriever
from dro_rl.sections.retrieval import Bm25Retrieval, GivenRetrieval

CATS = Document("Cats", "Cats sleep and purr.")
DOGS = Document("Dogs", "Dogs bark at postmen.")
FISH = Document("Fish", "Fish swim in rivers.")
BIRDS = Document("Birds", "Birds fly over rivers.")


def gold(document: Document) -> Document:
    return replace(document, is_gold=True)


def example(name: str, question: str, *documents: Document) -> Example:
    return Example(name, question, ("yes",), documents)


QUESTIONS = [
    example("q1", "Which animal is barking?", gold(DOGS), CATS, FISH),
    example("q2", "Which swims in the river?", BIRDS, gold(FISH), DOGS),
]


def given(**settings) -> GivenRetrieval:
    return GivenRetrieval.model_validate({"kind": "given", **settings})


def bm25(tmp_path: Path, **settings) -> Bm25Retrieval:
    cache = str(tmp_path / "cache")
    return Bm25Retrieval.model_validate({"kind": "bm25", "cache_dir": cache, **settings})


def search(tmp_path, question: str, k: int, *documents: Document, **settings):
    """The ranking of one question over these documents."""
    corpus = [example("corpus", "", *documents)]
    with open_retriever(bm25(tmp_path, **settings), corpus) as retriever:
        return retriever.search([question], k)[0]
