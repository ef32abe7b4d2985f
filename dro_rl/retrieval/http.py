"""A retriever behind a URL, such as `dro-rl retriever serve`; docs/retrieval.md has the JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from dro_rl.errors import UserError
from dro_rl.jsonlines import describe
from dro_rl.records import Document
from dro_rl.remote import post_json
from dro_rl.retrieval.retriever import Ranking
from dro_rl.sections.retrieval import HttpRetrieval


class _Hit(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    title: str = ""
    text: str
    score: float

    @field_validator("score")
    @classmethod
    def _finite(cls, score: float) -> float:
        if not math.isfinite(score):
            raise ValueError("is not a finite number")
        return score


class _Reply(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    results: list[list[_Hit]]


def ask(settings: HttpRetrieval, questions: Sequence[str], k: int) -> list[Ranking]:
    """The k best passages of each question, as the server has them.

    Raises:
        UserError: no usable reply came, or it is not one of `k` passages a question.
    """
    found = []
    for start in range(0, len(questions), settings.batch_size):
        some = list(questions[start : start + settings.batch_size])
        body = {"questions": some, "k": k}
        reply = post_json(settings.url, body, setting="retrieval.url", timeout=settings.timeout)
        found += _rankings(reply, some, k, settings.url)
    return found


def _rankings(reply: Any, questions: list[str], k: int, url: str) -> list[Ranking]:
    try:
        results = _Reply.model_validate(reply).results
    except ValidationError as error:
        raise UserError(
            f'retrieval.url: {url} replied with something else than {{"results": [[{{"title", '
            f'"text", "score"}}]]}}: {describe(error)}{_asked(error, questions)}'
        ) from error
    if len(results) != len(questions):
        raise UserError(
            f"retrieval.url: {url} replied with {len(results)} results to {len(questions)} "
            f"questions, the first of which is {questions[0]!r}"
        )
    for question, hits in zip(questions, results, strict=True):
        if len(hits) > k:
            raise UserError(
                f"retrieval.url: {url} replied with {len(hits)} passages to {question!r}, more "
                f"than the {k} it was asked for"
            )
    return [[(Document(hit.title, hit.text), hit.score) for hit in hits] for hits in results]


def _asked(error: ValidationError, questions: list[str]) -> str:
    """The question that the first problem is about, where it is about one."""
    numbers = [part for part in error.errors(include_url=False)[0]["loc"] if isinstance(part, int)]
    known = numbers and numbers[0] < len(questions)  # results.NUMBER
    return f" (question {questions[numbers[0]]!r})" if known else ""
