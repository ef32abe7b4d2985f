"""Reciprocal rank fusion, against sums by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from dro_rl.records import Document, Example
from dro_rl.retrieval import open_retriever
from dro_rl.retrieval.fusion import fuse
from dro_rl.sections.retrieval import FusionRetrieval

pytestmark = pytest.mark.unit


def test_scores_are_sums_of_reciprocal_ranks():
    fused = dict(fuse([[7, 8, 9], [8, 7, 5]], 60))
    assert fused == pytest.approx(
        {7: 1 / 61 + 1 / 62, 8: 1 / 62 + 1 / 61, 9: 1 / 63, 5: 1 / 63}, rel=1e-12
    )


def test_what_both_have_beats_what_one_has_first_and_ties_keep_their_order():
    assert [row for row, _ in fuse([[1, 2], [3, 2]], 60)] == [2, 1, 3]


def test_rows_that_were_not_found_have_no_rank():
    assert fuse([[4, -1, -1], [-1, 4, 5]], 10) == [(4, 2 / 11), (5, 1 / 12)]


def test_members_search_the_same_corpus(tmp_path: Path):
    documents = tuple(Document(t, f"{t} {t} text {t}.") for t in ("Cats", "Dogs", "Fish", "Birds"))
    settings = FusionRetrieval.model_validate(
        {
            "kind": "fusion",
            "of": [{"kind": "bm25"}, {"kind": "bm25", "b": 0}],
            "cache_dir": str(tmp_path),
        }
    )
    with open_retriever(settings, [Example("c", "", (), documents)]) as retriever:
        ((best, score), *rest), (first, *_) = retriever.search(["dog", "bird"], 3)
    assert best == documents[1]
    assert score == pytest.approx(2 / 61)
    assert len(rest) == 2
    assert first[0] == documents[3]
