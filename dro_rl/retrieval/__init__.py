"""Gives every question its N candidate documents: `add_candidates` is the way in."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from dro_rl.errors import UserError
from dro_rl.jsonlines import located
from dro_rl.records import Document, Example
from dro_rl.retrieval.corpus import Corpus, open_corpus
from dro_rl.retrieval.given import take_given
from dro_rl.retrieval.http import ask
from dro_rl.retrieval.retriever import Ranking, Retriever, Say, kept_rank, rankings
from dro_rl.sections.retrieval import (
    Bm25,
    Bm25Retrieval,
    Colbert,
    Dense,
    Fusion,
    GivenRetrieval,
    HttpRetrieval,
    Pylate,
    Retrieval,
    Searching,
)

__all__ = [
    "Corpus",
    "Ranking",
    "Retriever",
    "add_candidates",
    "make_retriever",
    "open_retriever",
    "with_ranking",
]


def add_candidates(
    examples: Sequence[Example],
    corpus_examples: Sequence[Example],
    retrieval: Retrieval,
    *,
    seed: int,
    required: int,
    advance: Callable[[int], object] = lambda done: None,
    say: Say = lambda text: None,
) -> list[Example]:
    """The examples with the top N documents as `candidates` and the retriever's `scores`.

    A document is gold for a question only where that question's own documents mark the same title
    and text as gold. There are fewer than N candidates where fewer documents exist. The order is
    the retriever's, or, with `retrieval.shuffle`, a permutation that depends on `seed` and the
    example's id alone, so that it is the same in every run and whatever else is loaded.

    Args:
        examples: questions whose `candidates` are the documents that came with them.
        corpus_examples: the questions whose documents make up the corpus of `corpus: pooled`.
        required: K, the fewest candidates that a question may have.
        advance: told how many more questions are done.
        say: told in a line what takes long.
    Raises:
        UserError: a question has fewer than `required` candidates, or the corpus is empty.
    """
    found = _search(examples, corpus_examples, retrieval, advance, say)
    return [
        with_ranking(example, _mark_gold(example, ranking), retrieval, seed, required)
        for example, ranking in zip(examples, found, strict=True)
    ]


@contextmanager
def open_retriever(
    retrieval: Searching, corpus_examples: Sequence[Example], say: Say = lambda text: None
) -> Iterator[Retriever]:
    """The recipe's retriever over its corpus, indexed; what it started ends with the block.

    Raises:
        UserError: the corpus is empty or unreadable, the index cannot be made or is damaged.
    """
    cache = located(retrieval.cache_dir).absolute()
    retriever = make_retriever(retrieval, cache, say)
    try:
        retriever.index(open_corpus(retrieval, corpus_examples))
        yield retriever
    finally:
        retriever.close()


def make_retriever(
    settings: Bm25 | Dense | Colbert | Pylate | Fusion,
    cache: Path,
    say: Say = lambda text: None,
) -> Retriever:
    """One way to search; it has no index yet. Each brings libraries that the others don't need."""
    if isinstance(settings, Fusion):
        from dro_rl.retrieval.fusion import FusionRetriever

        members = [make_retriever(member, cache, say) for member in settings.of]
        return FusionRetriever(settings, members, cache, say)
    if isinstance(settings, Dense):
        from dro_rl.retrieval.dense import DenseRetriever

        return DenseRetriever(settings, cache, say)
    if isinstance(settings, Colbert):
        from dro_rl.retrieval.colbert import ColbertRetriever

        return ColbertRetriever(settings, cache, say)
    if isinstance(settings, Pylate):
        from dro_rl.retrieval.pylate import PylateRetriever

        return PylateRetriever(settings, cache, say)
    from dro_rl.retrieval.bm25 import Bm25Retriever

    return Bm25Retriever(settings, cache, say)


def _search(
    examples: Sequence[Example],
    corpus_examples: Sequence[Example],
    retrieval: Retrieval,
    advance: Callable[[int], object],
    say: Say,
) -> Iterator[Ranking]:
    """The ranking of each example."""
    if isinstance(retrieval, GivenRetrieval):
        for example in examples:
            yield take_given(example, retrieval.candidates)
            advance(1)
    elif isinstance(retrieval, HttpRetrieval):
        for start in range(0, len(examples), retrieval.batch_size):
            questions = [e.question for e in examples[start : start + retrieval.batch_size]]
            yield from ask(retrieval, questions, retrieval.candidates)
            advance(len(questions))
    elif isinstance(retrieval, Bm25Retrieval) and retrieval.corpus == "own":
        for example in examples:
            yield _rank_own(example, retrieval)
            advance(1)
    else:
        questions = [e.question for e in examples]
        with open_retriever(retrieval, corpus_examples, say) as retriever:
            rows, scores = kept_rank(retriever, questions, retrieval.candidates, advance)
        yield from rankings(retriever.corpus, rows, scores)


def _rank_own(example: Example, retrieval: Bm25Retrieval) -> Ranking:
    from dro_rl.retrieval.bm25 import rank_own

    try:
        return rank_own(example.question, example.candidates, retrieval, retrieval.candidates)
    except UserError as error:
        raise UserError(f"example {example.id!r}: {error}") from error


def _mark_gold(example: Example, ranking: Ranking) -> Ranking:
    gold = {(d.title, d.text) for d in example.candidates if d.is_gold}
    return [(_marked(document, gold), score) for document, score in ranking]


def _marked(document: Document, gold: set[tuple[str, str]]) -> Document:
    is_gold = (document.title, document.text) in gold
    # Most stay as they are, one Document for all questions that found it.
    return replace(document, is_gold=is_gold) if is_gold != document.is_gold else document


def with_ranking(
    example: Example, ranking: Ranking, retrieval: Retrieval, seed: int, required: int
) -> Example:
    """The example with a ranking as its candidates; see `add_candidates`.

    Raises:
        UserError: there are fewer than `required`.
    """
    if len(ranking) < required:
        raise UserError(
            f"example {example.id!r} has {len(ranking)} candidate documents, fewer than the "
            f"{required} that a selection may hold: lower selector.documents, drop the example, "
            "or retrieve from a larger corpus (retrieval.kind: bm25, corpus: pooled)"
        )
    if retrieval.shuffle:
        random.Random(f"candidates/{seed}/{example.id}").shuffle(ranking)
    return replace(
        example,
        candidates=tuple(document for document, _ in ranking),
        scores=tuple(score for _, score in ranking),
    )
