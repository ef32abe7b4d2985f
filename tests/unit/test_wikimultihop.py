"""2WikiMultihopQA: what becomes of a record."""

from __future__ import annotations

import json
from typing import Any

import datasets.config
import pytest

from dro_rl.data import load_examples
from dro_rl.records import Document, Example
from tests.made_data import read, section, wikimultihop, write_lines, write_list, write_parquet

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


WIKIMULTIHOP = Example(
    "a",
    "Who is the mother of the author of a?",
    ("Eve",),
    (
        Document("Book", "By Ann. Long.", True),
        Document("Ann", "Born to Eve.", True),
        Document("Else", ""),
    ),
    metric="hotpotqa",
)


def test_wikimultihop_reads_the_publishers_format(tmp_path):
    path = write_list(tmp_path / "dev.json", wikimultihop("a"), wikimultihop("b"))
    assert read("wikimultihop", path)[0] == WIKIMULTIHOP


def test_wikimultihops_aliases_are_further_answers(tmp_path):
    path = write_list(tmp_path / "dev.json", wikimultihop("a"), wikimultihop("b", answer_id=None))
    aliases = write_lines(
        tmp_path / "id_aliases.json",
        {"Q_id": "Q1", "aliases": ["Adam"], "demonyms": []},
        {"Q_id": "Q2", "aliases": ["Eva", "Eve"], "demonyms": ["Evean"]},
    )
    first, second = read("wikimultihop", path, aliases_path=str(aliases))
    assert first.answers == ("Eve", "Eva", "Evean")
    assert second.answers == ("Eve",)


def columns(row: dict[str, Any]) -> dict[str, Any]:
    """As in the hub's copies that keep structs of lists."""
    facts, context = row["supporting_facts"], row["context"]
    return row | {
        "supporting_facts": {"title": [t for t, _ in facts], "sent_id": [s for _, s in facts]},
        "context": {"title": [t for t, _ in context], "content": [s for _, s in context]},
    }


def strings(row: dict[str, Any]) -> dict[str, Any]:
    """As in the hub's copies that keep JSON in strings."""
    return row | {key: json.dumps(row[key]) for key in ("supporting_facts", "context", "evidences")}


@pytest.mark.parametrize("layout", [columns, strings])
def test_wikimultihop_reads_the_hubs_layouts(tmp_path, layout):
    for split, name in (("train", "a"), ("dev", "b")):
        write_parquet(tmp_path / "2wiki" / f"{split}.parquet", layout(wikimultihop(name)))
    data = section(kind="wikimultihop", path=str(tmp_path / "2wiki"), evaluation_split="dev")
    split = load_examples(data, seed=0)
    assert split.train == [WIKIMULTIHOP]
    assert [e.id for e in split.evaluation] == ["b"]
