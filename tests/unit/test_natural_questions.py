"""Natural Questions, as NQ-open, of DPR and of readers: what becomes of a record."""

from __future__ import annotations

import pytest

from dro_rl.records import Document, Example
from tests.made_data import dpr, read, write_lines, write_list

pytestmark = pytest.mark.unit


def test_nq_open_has_several_answers_and_no_passages(tmp_path):
    path = write_lines(
        tmp_path / "NQ-open.dev.jsonl",
        {"question": "who wrote a", "answer": ["Ann", "Ann Lee"]},
        {"question": "who wrote b", "answer": ["Bob"]},
    )
    assert read("natural_questions", path) == [
        Example("NQ-open.dev.jsonl-1", "who wrote a", ("Ann", "Ann Lee")),
        Example("NQ-open.dev.jsonl-2", "who wrote b", ("Bob",)),
    ]


def test_dprs_positive_passages_are_gold_and_hard_negatives_beside_them(tmp_path):
    path = write_list(tmp_path / "biencoder-nq-dev.json", dpr("a"), dpr("b"))
    gold, first, second = (
        Document("a", "By Ann.", True),
        Document("a", "By whom?"),
        Document("a", "By somebody."),
    )
    assert read("natural_questions", path)[0].candidates == (gold, first, second)
    limited = read("natural_questions", path, hard_negatives=1)[0]
    assert limited.candidates == (gold, first)


def test_readers_passages_are_gold_by_annotation_or_else_by_answer(tmp_path):
    ctxs = [
        {"id": "1", "title": "A", "text": "By Ann.", "hasanswer": True, "isgold": False},
        {"id": "2", "title": None, "text": "Really by Ann.", "hasanswer": True, "isgold": True},
        {"id": "3", "title": "C", "text": "Ann.", "has_answer": True},
        {"id": "4", "title": "D", "text": "Nothing.", "score": "80.1"},
    ]
    rows = [{"question": f"who wrote {n}", "answers": ["Ann"], "ctxs": ctxs} for n in "ab"]
    path = write_lines(tmp_path / "nq.jsonl", *rows)
    documents = read("natural_questions", path)[0].candidates
    assert [d.is_gold for d in documents] == [False, True, True, False]
    assert [d.title for d in documents] == ["A", "", "C", "D"]
