"""MuSiQue: what becomes of a record."""

from __future__ import annotations

import datasets.config
import pytest

from dro_rl.data import load_examples
from dro_rl.records import Document, Example
from tests.made_data import musique, read, section, write_lines, write_parquet

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


MUSIQUE = Example(
    "2hop__a",
    "Where is the author of a from?",
    ("Oslo", "Christiania"),
    (
        Document("Book", "By Ann.", True),
        Document("Else", "Nothing."),
        Document("Ann", "Of Oslo.", True),
    ),
)


def test_musique_keeps_aliases_and_marks_supporting_paragraphs(tmp_path):
    path = write_lines(tmp_path / "musique.jsonl", musique("a"), musique("b"))
    assert read("musique", path)[0] == MUSIQUE


def test_musique_reads_the_hubs_layout(tmp_path):
    for split, name in (("train", "a"), ("validation", "b")):
        write_parquet(
            tmp_path / "musique" / "data" / f"{split}-00000-of-00001.parquet", musique(name)
        )
    split = load_examples(section(kind="musique", path=str(tmp_path / "musique")), seed=0)
    assert split.train == [MUSIQUE]
    assert [e.id for e in split.evaluation] == ["2hop__b"]


def test_musiques_unanswerable_questions_are_left_out(tmp_path):
    path = write_lines(
        tmp_path / "full.jsonl", musique("a"), musique("a", answerable=False), musique("b")
    )
    assert [e.id for e in read("musique", path)] == ["2hop__a", "2hop__b"]
