"""The rollouts of a run as its report shows them: a question, and what became of it by iteration.

A block is {"documents": [[title, text], ...], "questions": [...]}; documents are there once and
named by number. A question has "views", one an iteration: the candidates in the order of that
prompt, the selections, and for held-out questions the greedy selection and the answer from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dro_rl.tracking.run_directory import RunDirectory

_QUESTIONS = 2000  # of a block: what a page holds without getting slow
_TEXT = 600  # characters of a document


class _Block:
    """Collects questions, and documents once."""

    def __init__(self) -> None:
        self.numbers: dict[tuple[str, str], int] = {}
        self.questions: dict[str, dict[str, Any]] = {}

    def add(self, row: Mapping[str, Any], view: dict[str, Any]) -> None:
        """One more view of a question with these candidates; without room it is left out."""
        question = self.questions.get(row["example"])
        if question is None:
            if len(self.questions) == _QUESTIONS:
                return
            question = {
                "id": row["example"],
                "question": row["question"],
                "answers": row["answers"],
                "views": [],
            }
            self.questions[row["example"]] = question
        question["views"].append({**view, "candidates": self._candidates(row)})

    def _candidates(self, row: Mapping[str, Any]) -> list[list]:
        """[document, gold, retriever's score] of each."""
        scores = row["scores"] or [None] * len(row["candidates"])
        return [
            [self._number(d["title"], d["text"]), int(d["is_gold"]), score]
            for d, score in zip(row["candidates"], scores, strict=True)
        ]

    def _number(self, title: str, text: str) -> int:
        return self.numbers.setdefault((title, text), len(self.numbers))

    def whole(self, of: int) -> dict[str, Any]:
        """The block; `of` is how many questions there were."""
        documents = [
            [title, text if len(text) <= _TEXT else text[:_TEXT] + "…"]
            for title, text in self.numbers
        ]
        return {"documents": documents, "questions": [*self.questions.values()], "of": of}


def held_out_rollouts(run: RunDirectory) -> dict[str, Any]:
    """The held-out questions, a view an evaluation.

    Their samples are what the bound was estimated from: documents, log p_s(z|x), log p_g(y|x,d_z)
    [nats] and the weight that DRO would give.
    """
    block = _Block()
    shown = {row["example"]: row for row in run.held_out()}
    for evaluation in run.evaluations():
        for row in run.evaluated_questions(evaluation["iteration"]):
            likelihoods = [s["log_likelihood"] for s in row["samples"]]
            weights = _softmax(likelihoods)
            view = {
                "iteration": evaluation["iteration"],
                "greedy": row["documents"],
                "answer": row["answer"],
                **{key: row[key] for key in ("em", "f1", "bound", "gold_recall")},
                "samples": [
                    {
                        "documents": s["documents"],
                        "logp": _short(s["logp"]),
                        "log_reward": _short(s["log_likelihood"]),
                        "weight": _short(w),
                    }
                    for s, w in zip(row["samples"], weights, strict=True)
                ],
            }
            block.add(shown[row["example"]], view)
    return block.whole(len(shown))


def training_rollouts(run: RunDirectory) -> dict[str, Any]:
    """The questions of the last iterations, newest first in choice, a view an iteration."""
    block, seen = _Block(), set[str]()
    views: list[tuple[Mapping[str, Any], dict[str, Any]]] = []
    for iteration in reversed([row["iteration"] for row in run.iterations()]):
        if len(seen) >= _QUESTIONS:
            break
        shown, selections = run.rollouts(iteration)
        groups: dict[str, list[dict[str, Any]]] = {row["example"]: [] for row in shown}
        for row in selections:
            groups[row["example"]].append(_sample(row))
        for row in shown:
            views.append((row, {"iteration": iteration, "samples": groups[row["example"]]}))
        seen |= groups.keys()
    for row, view in views:
        block.add(row, view)
    for question in block.questions.values():
        question["views"].reverse()
    return block.whole(len(seen))


def _sample(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "text": row["selection"],
        "documents": row["documents"],
        "malformed": row["malformed"],
        "logp": _short(row["logq"]),
        "log_reward": _short(row["log_reward"]),
        "weight": _short(row["selector_weight"]),
    }


def _softmax(values: Sequence[float]) -> list[float]:
    shifted = np.exp(np.asarray(values) - max(values))
    return (shifted / shifted.sum()).tolist()


def _short(value: float) -> float | None:
    """Four digits: a page of a million numbers should not carry seventeen of each. JSON has no
    number for what is not finite, such as a log-reward of -inf."""
    return float(f"{value:.4g}") if math.isfinite(value) else None
