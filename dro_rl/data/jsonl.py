"""JSON lines: one question a line, {"id", "question", "answers": [], "documents": []}.

A document is {"title", "text", "is_gold"}; title and is_gold are optional. "metric" may be
"hotpotqa", for HotpotQA's rule for yes and no. Other keys are ignored, and so are blank lines.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from dro_rl.data.load import Layout, Text
from dro_rl.records import Document, Example, Metric
from dro_rl.sections.data import JsonlData


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
    metric: Metric = "squad"


def _examples(content: Any, name: str) -> Iterator[Example]:
    row = _Question.model_validate(content)
    documents = tuple(Document(d.title, d.text, d.is_gold) for d in row.documents)
    yield Example(row.id, row.question, tuple(row.answers), documents, metric=row.metric)


def layout(data: JsonlData) -> Layout:
    return Layout(
        _examples,
        'a line is {"id": "...", "question": "...", "answers": ["..."], '
        '"documents": [{"title": "...", "text": "...", "is_gold": true}]}',
    )
