"""JSON lines: one question a line, {"id", "question", "answers": [], "documents": []}.

A document is {"title", "text", "is_gold"}; title and is_gold are optional. Keys beyond these are
ignored, and so are blank lines.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dro_rl.data.split import (
    Split,
    Text,
    check_disjoint,
    check_not_empty,
    check_unique,
    describe,
    split_files,
)
from dro_rl.errors import UserError
from dro_rl.recipe import JsonlData
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
    placed = [
        (f"{path}, line {number}", _read_line(path, number, line))
        for number, line in _lines(path)
        if line.strip()
    ]
    examples = [example for _, example in placed]
    check_not_empty(examples, path)
    check_unique(placed)
    return examples


def _lines(path: str) -> Iterator[tuple[int, bytes]]:
    try:
        with Path(path).expanduser().open("rb") as file:
            for number, line in enumerate(file, start=1):
                yield number, line.removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}: set data.path and data.evaluation_path to "
            "files of JSON lines"
        ) from error


def _read_line(path: str, number: int, line: bytes) -> Example:
    try:
        row = _Question.model_validate_json(line)
    except ValidationError as error:
        raise UserError(f"{path}, line {number}: {describe(error)}; {SCHEMA}") from error
    documents = tuple(Document(d.title, d.text, d.is_gold) for d in row.documents)
    return Example(row.id, row.question, tuple(row.answers), documents)


def _normalise(question: str) -> str:
    return " ".join(question.casefold().split())
