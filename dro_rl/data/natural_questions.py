"""Natural Questions' open version (Kwiatkowski et al., TACL 2019; Lee et al., ACL 2019, arXiv
1906.00300), in four layouts that tell themselves apart by their keys:

- NQ-open, {"question", "answer": []}: the publishers' NQ-open.train.jsonl and NQ-open.dev.jsonl,
  and the hub's nq_open. No passages: they come by retrieval, and none is gold.
- DPR's biencoder-nq-train.json and -dev.json (Karpukhin et al., EMNLP 2020, arXiv 2004.04906), a
  JSON list of {"question", "answers": [], "positive_ctxs": [{"title", "text"}], "negative_ctxs",
  "hard_negative_ctxs"}. Positive contexts are gold; hard negatives (BM25's without the answer) are
  the other documents, random negatives are not read.
- What readers are given, {"question", "answers": [], "ctxs": [{"title", "text", ...}]}, as DPR, FiD
  and Lost in the Middle write it. A passage is gold when "isgold" says so, or where that is
  missing, when "has_answer" or "hasanswer" does.

Questions have no ids: theirs is the file's name and their place in it. The official metric is exact
match with any of the answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from dro_rl.data.load import Layout, Text
from dro_rl.records import Document, Example
from dro_rl.sections.data import NaturalQuestionsData


class _Passage(BaseModel):
    title: str | None = None  # DPR has a few without
    text: str
    isgold: bool | None = None
    has_answer: bool = Field(
        default=False, validation_alias=AliasChoices("has_answer", "hasanswer")
    )

    def document(self, is_gold: bool) -> Document:
        return Document(self.title or "", self.text, is_gold)


class _Question(BaseModel):
    model_config = ConfigDict(extra="ignore")

    question: Text
    answers: list[str] = Field(min_length=1, validation_alias=AliasChoices("answers", "answer"))
    positive_ctxs: list[_Passage] = []
    hard_negative_ctxs: list[_Passage] = []
    ctxs: list[_Passage] = []


def _examples(hard_negatives: int, content: Any, name: str) -> Iterator[Example]:
    row = _Question.model_validate(content)
    documents = [
        *(p.document(True) for p in row.positive_ctxs),
        *(p.document(False) for p in row.hard_negative_ctxs[:hard_negatives]),
        *(p.document(p.has_answer if p.isgold is None else p.isgold) for p in row.ctxs),
    ]
    yield Example(name, row.question, tuple(row.answers), tuple(documents))


def layout(data: NaturalQuestionsData) -> Layout:
    return Layout(
        partial(_examples, data.hard_negatives),
        'a record is {"question": "...", "answer": ["..."]} (NQ-open), or has "answers" and '
        '"positive_ctxs" or "ctxs" (DPR)',
    )
