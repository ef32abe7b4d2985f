"""Files of data sets as their publishers ship them, of a few made-up records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from dro_rl.data import load_examples
from dro_rl.records import Example
from dro_rl.sections.data import Data


def section(**settings: Any) -> Any:
    return TypeAdapter(Data).validate_python(settings)


def read(kind: str, path: Path | str, **settings: Any) -> list[Example]:
    """All examples of a file, its last one held out."""
    split = load_examples(
        section(kind=kind, path=str(path), evaluation_questions=1, **settings), seed=0
    )
    return [*split.train, *split.evaluation]


def write_list(path: Path, *records: Any) -> Path:
    path.write_text(json.dumps(records))
    return path


def write_lines(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def write_parquet(path: Path, *records: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(records)), path)


# --- records --------------------------------------------------------------------------------------


def musique(name: str, **changes: Any) -> dict[str, Any]:
    row = {
        "id": f"2hop__{name}",
        "paragraphs": [
            {"idx": 0, "title": "Book", "paragraph_text": "By Ann.", "is_supporting": True},
            {"idx": 1, "title": "Else", "paragraph_text": "Nothing.", "is_supporting": False},
            {"idx": 2, "title": "Ann", "paragraph_text": "Of Oslo.", "is_supporting": True},
        ],
        "question": f"Where is the author of {name} from?",
        "question_decomposition": [{"id": 1, "question": "...", "answer": "Ann"}],
        "answer": "Oslo",
        "answer_aliases": ["Christiania", "Oslo"],
        "answerable": True,
    }
    return row | changes


def wikimultihop(name: str, **changes: Any) -> dict[str, Any]:
    row = {
        "_id": name,
        "type": "compositional",
        "question": f"Who is the mother of the author of {name}?",
        "context": [["Book", ["By Ann.", "Long."]], ["Ann", ["Born to Eve."]], ["Else", []]],
        "supporting_facts": [["Book", 0], ["Ann", 0]],
        "evidences": [["Book", "author", "Ann"], ["Ann", "mother", "Eve"]],
        "answer": "Eve",
        "evidences_id": [],
        "answer_id": "Q2",
    }
    return row | changes


def dpr(name: str) -> dict[str, Any]:
    def passage(text: str) -> dict[str, Any]:
        return {"title": name, "text": text, "score": 7.5, "title_score": 0, "passage_id": "12"}

    return {
        "dataset": "nq_dev_psgs_w100",
        "question": f"who wrote {name}",
        "answers": ["Ann"],
        "positive_ctxs": [passage("By Ann.")],
        "negative_ctxs": [passage("A random one.")],
        "hard_negative_ctxs": [passage("By whom?"), passage("By somebody.")],
    }


def dro(**changes: Any) -> dict[str, Any]:
    whole = "Title: Great Lakes. Content: The lakes meet the sea. They are five."
    row = {
        "question": "where do the lakes meet the sea",
        "answer": "the Saint Lawrence River",
        "positive": [whole, whole, "Title: River. Content: It leaves the lakes."],
        "query_id": "query_1",
        "retrieval": [
            'Title: "Big O" Text:  An anime.',
            'Title: "Great Lakes" Text:  The lakes meet  the sea.',
            'Title: "Great Lakes" Text:  A region.',
        ],
    }
    return row | changes
