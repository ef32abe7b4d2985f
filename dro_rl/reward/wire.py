"""The JSON that a reward server and its clients speak; docs/rewards.md shows it.

A request has questions, each with the selections that are to be scored; a reply has the reward's
scale and needs, and a list of scores a question. JSON has no infinity: log 0 is the text "-inf".
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, Field, PlainSerializer

from dro_rl.records import Document, Example, Metric, Outcome
from dro_rl.reward.base import Need, Scale


def _writable(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


Number = Annotated[float, PlainSerializer(_writable, return_type=float | str)]


class WireDocument(BaseModel):
    title: str = ""
    text: str
    is_gold: bool = False


class WireSelection(BaseModel):
    """`documents` are 0-based indices into the question's candidates, in the order selected.

    `log_likelihood` [nats] and `answer` are null unless the reward needs them.
    """

    documents: list[Annotated[int, Field(ge=0)]]
    log_likelihood: Number | None = None
    answer_tokens: int = 0
    answer: str | None = None


class WireQuestion(BaseModel):
    id: str
    question: str
    answers: list[str]
    parts: list[str] = []
    metric: Metric = "squad"
    candidates: list[WireDocument] = []
    scores: list[Number] = []
    selections: list[WireSelection]


class Request(BaseModel):
    questions: list[WireQuestion]


class Reply(BaseModel):
    """`scores` has a list a question with a number a selection, in the request's order."""

    scale: Scale
    needs: list[Need]
    scores: list[list[Number]]


def to_request(outcomes: Sequence[Outcome]) -> Request:
    """Outcomes that follow each other and are of one question share it."""
    groups = [list(group) for _, group in itertools.groupby(outcomes, lambda o: id(o.example))]
    return Request(questions=[_question(group) for group in groups])


def _question(group: Sequence[Outcome]) -> WireQuestion:
    example = group[0].example
    return WireQuestion(
        id=example.id,
        question=example.question,
        answers=list(example.answers),
        parts=list(example.parts),
        metric=example.metric,
        candidates=[
            WireDocument(title=d.title, text=d.text, is_gold=d.is_gold) for d in example.candidates
        ],
        scores=list(example.scores),
        selections=[
            WireSelection(
                documents=list(o.documents),
                log_likelihood=o.log_likelihood,
                answer_tokens=o.answer_tokens,
                answer=o.answer,
            )
            for o in group
        ],
    )


def from_request(request: Request) -> list[list[Outcome]]:
    """A list of outcomes a question.

    Raises:
        ValueError: a selection names a document that is no candidate.
    """
    return [_outcomes(question) for question in request.questions]


def _outcomes(question: WireQuestion) -> list[Outcome]:
    candidates = tuple(Document(d.title, d.text, d.is_gold) for d in question.candidates)
    example = Example(
        question.id,
        question.question,
        tuple(question.answers),
        candidates,
        tuple(question.parts),
        tuple(question.scores),
        question.metric,
    )
    for selection in question.selections:
        if max(selection.documents, default=-1) >= len(candidates):
            raise ValueError(
                f"question {question.id}: documents {selection.documents} are not all among its "
                f"{len(candidates)} candidates (indices count from 0)"
            )
    return [
        Outcome(example, tuple(s.documents), s.log_likelihood, s.answer_tokens, s.answer)
        for s in question.selections
    ]
