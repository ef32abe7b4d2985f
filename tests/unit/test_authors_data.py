"""The format of the DRO authors' files: what becomes of a record."""

from __future__ import annotations

import pytest

from dro_rl.records import Document, Example
from tests.made_data import dro, read, write_list

pytestmark = pytest.mark.unit


def test_the_authors_format_ranks_retrieved_passages_and_adds_missing_positive_ones(tmp_path):
    path = write_list(tmp_path / "nq_train.json", dro(), dro(question="another"))
    first, _ = read("dro", path)
    assert first == Example(
        "nq_train.json-1",
        "where do the lakes meet the sea",
        ("the Saint Lawrence River",),
        (
            Document("Big O", "An anime."),
            Document("Great Lakes", "The lakes meet  the sea.", is_gold=True),
            Document("Great Lakes", "A region."),
            Document("River", "It leaves the lakes.", is_gold=True),
        ),
    )


def test_the_authors_format_marks_every_cut_of_a_positive_passage(tmp_path):
    cuts = ["Title: Great Lakes. Content: The lakes meet the sea.", "Title: Great Lakes. Content: "]
    again = "Title: Great Lakes. Content: They are five."
    row = dro(retrieval=[cuts[0], again, cuts[1]])
    path = write_list(tmp_path / "nq_train.json", row, dro(question="another"))
    documents = read("dro", path)[0].candidates
    assert [d.is_gold for d in documents] == [True, True, False, True]
    assert [d.title for d in documents] == ["Great Lakes"] * 3 + ["River"]


def test_the_authors_format_knows_hotpotqas_metric_and_passages_without_title(tmp_path):
    path = write_list(
        tmp_path / "hotpot.json",
        dro(dataset="hotpotqa", retrieval=["Just text."], answer=["yes", "yes, they do"]),
        dro(question="another"),
    )
    first, second = read("dro", path)
    assert (first.metric, second.metric) == ("hotpotqa", "squad")
    assert first.answers == ("yes", "yes, they do")
    assert first.candidates[0] == Document("", "Just text.")
