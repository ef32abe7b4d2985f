"""The corpus to search: the documents of all questions, or a file of passages."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict

from dro_rl.jsonlines import read_lines
from dro_rl.records import Document, Example

SCHEMA = 'a line is {"title": "...", "text": "..."}'


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
    rows = read_lines(path, _Passage, SCHEMA, "retrieval.corpus_path")
    return list(dict.fromkeys(Document(row.title, row.text) for _, row in rows))
