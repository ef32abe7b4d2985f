"""Gives every question its N candidate documents: `add_candidates` is the way in."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from dro_rl.errors import UserError
from dro_rl.records import Document, Example
from dro_rl.retrieval.bm25 import Bm25Index, open_index
from dro_rl.retrieval.given import take_given
from dro_rl.retrieval_sections import Bm25Retrieval, Retrieval

__all__ = ["Bm25Index", "add_candidates", "open_index"]

Ranking = list[tuple[Document, float]]  # best first; a score is higher for the better document


def add_candidates(
    examples: Sequence[Example],
    corpus_examples: Sequence[Example],
    retrieval: Retrieval,
    *,
    seed: int,
    required: int,
    advance: Callable[[int], object] = lambda done: None,
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
        advance: told 1 for every question that is done.
    Raises:
        UserError: a question has fewer than `required` candidates, or the corpus is empty.
    """
    rank = _ranker(corpus_examples, retrieval)
    found = []
    for example in examples:
        found.append(_with_candidates(example, rank(example), retrieval, seed, required))
        advance(1)
    return found


def _ranker(
    corpus_examples: Sequence[Example], retrieval: Retrieval
) -> Callable[[Example], Ranking]:
    count = retrieval.candidates
    if not isinstance(retrieval, Bm25Retrieval):
        return lambda example: take_given(example, count)
    if retrieval.corpus == "own":
        return lambda example: _rank_own(example, retrieval)
    index = open_index(corpus_examples, retrieval)
    return lambda example: _mark_gold(example, index.search(example.question, count))


def _rank_own(example: Example, retrieval: Bm25Retrieval) -> Ranking:
    # An index of its own for each question: what the word frequencies of these few documents say
    # ranks them better than those of a whole corpus (HotpotQA, 1,677 questions of 10 documents:
    # gold recall@3 0.755 against 0.666), and at 1.4 ms it needs no cache.
    if not example.candidates:
        return []
    try:
        index = Bm25Index.build(example.candidates, retrieval)
    except UserError as error:
        raise UserError(f"example {example.id!r}: {error}") from error
    return index.search(example.question, retrieval.candidates)


def _mark_gold(example: Example, ranking: Ranking) -> Ranking:
    gold = {(d.title, d.text) for d in example.candidates if d.is_gold}
    return [(replace(d, is_gold=(d.title, d.text) in gold), score) for d, score in ranking]


def _with_candidates(
    example: Example, ranking: Ranking, retrieval: Retrieval, seed: int, required: int
) -> Example:
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
