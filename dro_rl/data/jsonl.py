"""JSON lines: one question a line, {"id", "question", "answers": [], "documents": []}.

A document is {"title", "text", "is_gold"}; title and is_gold are optional. Keys beyond these are
ignored, and so are blank lines.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from dro_rl.data.split import (
    Split,
    Text,
    check_disjoint,
    check_not_empty,
    check_unique,
    split_files,
)
from dro_rl.data_sections import JsonlData
from dro_rl.jsonlines import read_lines
from dro_rl.records import Document, Example

SCHEMA = (
    'a line is {"id": "...", "question": "...", "answers": ["..."], '
    '"documents": [{"title": "...", "text": "...", "is_gold": true}]}'
)


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


class _Document(_Record):
    title: str = ""
    text: str
    is_gold: bool = False


class _Question(_Record):
    id: Text
    question: Text
    answers: list[Text] = Field(min_length=1)
    documents: list[_Document]


def load_jsonl(data: JsonlData) -> Split:
    """The questions of one or two JSON-lines files.

    Raises:
        UserError: names the file and the line, or the question that is on both sides.
    """
    split = split_files(data, read_jsonl)
    files = " and ".join(filter(None, (data.path, data.evaluation_path)))
    check_disjoint(split, lambda example: _normalise(example.question), files)
    return split


def read_jsonl(path: str) -> list[Example]:
    """All questions of a file.

    Raises:
        UserError: the file is missing or empty, or a line does not hold a question; names the
            file and the line.
    """
    rows = read_lines(path, _Question, SCHEMA, "data.path (or data.evaluation_path)")
    placed = [(place, _example(row)) for place, row in rows]
    examples = [example for _, example in placed]
    check_not_empty(examples, path)
    check_unique(placed)
    return examples


def _example(row: _Question) -> Example:
    documents = tuple(Document(d.title, d.text, d.is_gold) for d in row.documents)
    return Example(row.id, row.question, tuple(row.answers), documents)


def _normalise(question: str) -> str:
    return " ".join(question.casefold().split())
