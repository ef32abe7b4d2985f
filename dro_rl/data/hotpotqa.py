"""HotpotQA (Yang et al., EMNLP 2018, arXiv 1809.09600) in both layouts it is published in.

The publishers' file is a JSON list of {"_id", "question", "answer", "supporting_facts": [[title,
sentence]], "context": [[title, [sentences]]]}. The hub's layout has the same content in columns
("id", and "supporting_facts" and "context" as structs of lists), one folder a configuration. A
paragraph is gold when one of the supporting facts is in it. Official metric:
hotpot_evaluate_v1.py, whose F1 has a rule for yes and no.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field

from dro_rl.data.load import Layout, Text
from dro_rl.records import Document, Example
from dro_rl.sections.data import HotpotData


def _pairs(value: Any) -> Any:
    """A hub's struct of two lists as the publishers' pairs, and what some copies keep as JSON in a
    string; anything else is left for validation to refuse."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return value
    if isinstance(value, dict) and len(value) == 2:
        first, second = value.values()
        if isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
            return list(zip(first, second, strict=True))
    return value


class HotpotQuestion(BaseModel):
    """A record; what is not used (type, level) is ignored. 2WikiMultihopQA has the same."""

    model_config = ConfigDict(extra="ignore")

    id: Text = Field(validation_alias=AliasChoices("_id", "id"))
    question: Text
    answer: Text
    supporting_facts: Annotated[list[tuple[str, int]], BeforeValidator(_pairs)]
    context: Annotated[list[tuple[str, list[str]]], BeforeValidator(_pairs)]

    def documents(self) -> tuple[Document, ...]:
        """The paragraphs in their order, gold where a supporting fact is in them."""
        gold = {title for title, _ in self.supporting_facts}
        return tuple(
            # Sentences carry their leading space in some copies and not in others.
            Document(title, " ".join(filter(None, map(str.strip, sentences))), title in gold)
            for title, sentences in self.context
        )


def _examples(content: Any, name: str) -> Iterator[Example]:
    row = HotpotQuestion.model_validate(content)
    yield Example(row.id, row.question, (row.answer,), row.documents(), metric="hotpotqa")


def layout(data: HotpotData) -> Layout:
    return Layout(
        _examples,
        "this is not HotpotQA's format with answers and supporting facts (its hidden test set has "
        "neither)",
    )
