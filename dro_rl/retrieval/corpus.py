"""The corpus to search: the documents of all questions, or a file of passages."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from dro_rl.errors import UserError
from dro_rl.records import Document, Example


class _Passage(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    title: str = ""
    text: str


def pool(examples: Iterable[Example]) -> list[Document]:
    """The distinct documents of all questions, in order of first occurrence.

    None is gold: that is a matter between a document and a question.
    """
    keys = dict.fromkeys((d.title, d.text) for example in examples for d in example.candidates)
    return [Document(title, text) for title, text in keys]


def read_corpus(path: str) -> list[Document]:
    """The distinct passages of a file of JSON lines {"title", "text"}; title is optional.

    Raises:
        UserError: the file is missing, or a line is not a passage (named by its number).
    """
    passages = [_read_line(path, number, line) for number, line in _lines(path) if line.strip()]
    return list(dict.fromkeys(passages))


def _lines(path: str) -> Iterator[tuple[int, bytes]]:
    try:
        with Path(path).expanduser().open("rb") as file:
            for number, line in enumerate(file, start=1):
                yield number, line.removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}: set retrieval.corpus_path to a file of JSON "
            'lines {"title": "...", "text": "..."}'
        ) from error


def _read_line(path: str, number: int, line: bytes) -> Document:
    try:
        passage = _Passage.model_validate_json(line)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise UserError(
            f"{path}, line {number}: {key + ': ' if key else ''}{problem['msg']}; a line is "
            '{"title": "...", "text": "..."}'
        ) from error
    return Document(passage.title, passage.text)
