"""MuSiQue (Trivedi et al., TACL 2022, arXiv 2108.00573), MuSiQue-Answerable or MuSiQue-Full.

A record is {"id", "question", "answer", "answer_aliases": [], "answerable", "paragraphs": [{"idx",
"title", "paragraph_text", "is_supporting"}], "question_decomposition": [...]}, one a line. A
paragraph is gold when `is_supporting`. The aliases are further answers: the official metric is the
best over answer and aliases. Full's unanswerable questions, whose documents lack a supporting one,
are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

from dro_rl.data.hub import listed
from dro_rl.data.load import Layout, Text
from dro_rl.records import Document, Example
from dro_rl.sections.data import MusiqueData


class _Paragraph(BaseModel):
    title: str
    paragraph_text: str
    is_supporting: bool


class _Question(BaseModel):
    model_config = ConfigDict(extra="ignore")

    id: Text
    question: Text
    answer: Text
    answer_aliases: list[str] = []
    answerable: bool = True
    paragraphs: Annotated[list[_Paragraph], BeforeValidator(listed)]


def _examples(content: Any, name: str) -> Iterator[Example]:
    row = _Question.model_validate(content)
    if row.answerable:
        documents = tuple(
            Document(p.title, p.paragraph_text, p.is_supporting) for p in row.paragraphs
        )
        yield Example(row.id, row.question, (row.answer, *row.answer_aliases), documents)


def layout(data: MusiqueData) -> Layout:
    return Layout(
        _examples,
        "this is not MuSiQue's format with answers and is_supporting (its hidden test set has "
        "neither)",
    )
