"""The format that the DRO authors bring all sets into (mangopy/direct-rag-learning, README and
src/prepare/prepare.py), a JSON list or JSON lines of:

- "question"; "answer", a string (a list of strings is taken as alternatives);
- "positive": the supporting passages, "Title: Great Lakes. Content: ..."; the same may stand twice;
- "retrieval": what was retrieved, in its order, 'Title: "Great Lakes" Text: ...' or as above;
- "dataset", where it is there: for hotpotqa and wikimultihop HotpotQA's rule for yes and no holds.

"query_id" is not read, for it counts anew in every file; the id is the file's name and the place.

The documents are the retrieved passages, then the positive ones that are not among them. So
`retrieval.kind: given` with `candidates: 20` takes the 20 best retrieved ones, as the authors' call
for NQ does (`--k_positive 0 --k_retrieval 20`), and the positive ones fill up what is missing. A
retrieved passage is gold when it has the title of a positive one and its text holds the other's,
or the other way round (retrieved ones are cut to whole sentences).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict

from dro_rl.data.load import Layout, Text
from dro_rl.records import Document, Example
from dro_rl.sections.data import DroData

_PASSAGE = re.compile(r"\s*Title:(?P<title>.*?)(?:\.?\s*Content:|\s+Text:)(?P<text>.*)", re.DOTALL)
_WITH_YES_AND_NO = ("hotpotqa", "wikimultihop")  # the names that prepare.py gives


class _Question(BaseModel):
    model_config = ConfigDict(extra="ignore")

    question: Text
    answer: str | list[str]
    positive: list[str] = []
    retrieval: list[str]
    dataset: str = ""


def _examples(content: Any, name: str) -> Iterator[Example]:
    row = _Question.model_validate(content)
    positive = dict.fromkeys(_passage(text, is_gold=True) for text in row.positive)
    documents, retrieved = [], set[Document]()
    for text in row.retrieval:
        document = _passage(text, is_gold=False)
        same = [p for p in positive if _same(p, document)]
        documents.append(Document(document.title, document.text, bool(same)))
        retrieved.update(same)
    answers = (row.answer,) if isinstance(row.answer, str) else tuple(row.answer)
    missing = [p for p in positive if p not in retrieved]
    metric = "hotpotqa" if row.dataset in _WITH_YES_AND_NO else "squad"
    yield Example(name, row.question, answers, (*documents, *missing), metric=metric)


def _passage(text: str, is_gold: bool) -> Document:
    parts = _PASSAGE.fullmatch(text)
    if not parts:
        return Document("", text.strip(), is_gold)
    return Document(parts["title"].strip().strip('"'), parts["text"].strip(), is_gold)


def _same(one: Document, other: Document) -> bool:
    a, b = (" ".join(document.text.split()) for document in (one, other))
    cut = a in b or b in a  # and an empty text would be a cut of any
    return one.title.casefold() == other.title.casefold() and bool(a and b) and cut


def layout(data: DroData) -> Layout:
    return Layout(
        _examples,
        'a record is {"question": "...", "answer": "...", "positive": ["Title: ... Content: ..."], '
        '"retrieval": ["Title: ... Content: ..."]}',
    )
