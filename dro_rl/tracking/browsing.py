"""The rollouts of a run as its report shows them: a question, and what became of it by iteration.

A block is {"documents": [[title, text], ...], "questions": [...]}; documents are there once and
named by number. A question has "views", one an iteration: the candidates in the order of that
prompt, the selections, and for held-out questions the greedy selection and the answer from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from dro_rl.tracking import stored
from dro_rl.tracking.run_directory import RunDirectory

_QUESTIONS = 2000  # of a block: what a page holds without getting slow
_TEXT = 600  # characters of a document


class _Block:
    """Collects questions, and documents once."""

    def __init__(self) -> None:
        self.numbers: dict[tuple[str, str], int] = {}
        self.questions: dict[str, dict[str, Any]] = {}
        self.complete = True

    @property
    def is_full(self) -> bool:
        """Whether it takes no further question."""
        return len(self.questions) == _QUESTIONS

    def add(self, row: Mapping[str, Any], view: dict[str, Any]) -> None:
        """One more view of a question, with the candidates of this row."""
        question = self.questions.setdefault(
            row["example"],
            {
                "id": row["example"],
                "question": row["question"],
                "answers": row["answers"],
                "views": [],
            },
        )
        question["views"].append({**view, "candidates": self._candidates(row)})

    def _candidates(self, row: Mapping[str, Any]) -> list[list]:
        """[document, gold, retriever's score] of each."""
        scores = row["scores"] or [None] * len(row["candidates"])
        return [
            [self._number(d["title"], d["text"]), int(d["is_gold"]), _short(score)]
            for d, score in zip(row["candidates"], scores, strict=True)
        ]

    def _number(self, title: str, text: str) -> int:
        return self.numbers.setdefault((title, text), len(self.numbers))

    def whole(self) -> dict[str, Any]:
        """The block; `complete` says whether all questions are in it."""
        documents = [
            [title, text if len(text) <= _TEXT else text[:_TEXT] + "…"]
            for title, text in self.numbers
        ]
        return {
            "documents": documents,
            "questions": [*self.questions.values()],
            "complete": self.complete,
        }


def held_out_rollouts(run: RunDirectory) -> dict[str, Any]:
    """The held-out questions, a view an evaluation.

    Their samples are what the bound was estimated from: documents, log p_s(z|x), log p_g(y|x,d_z)
    [nats] and the weight that DRO would give.
    """
    block = _Block()
    shown = {row["example"]: row for row in islice(run.held_out(), _QUESTIONS)}
    for evaluation in run.evaluations():
        for row in run.evaluated_questions(evaluation["iteration"], stored.Answered):
            if row["example"] in shown:
                view = {"iteration": evaluation["iteration"], **_evaluated(row)}
                block.add(shown[row["example"]], view)
        block.complete = len(shown) == evaluation["questions"]
    return block.whole()


def _evaluated(row: Mapping[str, Any]) -> dict[str, Any]:
    rewards = [_log_reward(s) for s in row["samples"]]
    weights = _softmax(rewards)
    return {
        "greedy": row["documents"],
        "malformed": row["malformed"],
        "answer": row["answer"],
        "em": row["em"],
        "f1": row["f1"],
        "bound": _short(row["bound"]),
        "reward": _short(row.get("reward")),
        "samples": [
            {
                "documents": s["documents"],
                "logp": _short(s["logp"]),
                "log_reward": _short(reward),
                "weight": _short(weight),
            }
            for s, reward, weight in zip(row["samples"], rewards, weights, strict=True)
        ],
    }


def training_rollouts(run: RunDirectory) -> dict[str, Any]:
    """The questions of training, the last iterations' first, a view each time one was seen."""
    block = _Block()
    for iteration in reversed([row["iteration"] for row in run.iterations()]):
        for shown, group in run.rollouts(iteration):
            if block.is_full and shown["example"] not in block.questions:
                block.complete = False
                continue
            block.add(shown, {"iteration": iteration, "samples": [_sample(row) for row in group]})
    for question in block.questions.values():
        question["views"].reverse()
    return block.whole()


def _sample(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "text": row["selection"],
        "documents": row["documents"],
        "malformed": row["malformed"],
        "logp": _short(row["logq"]),
        "log_reward": _short(row["log_reward"]),
        "weight": _short(row["selector_weight"]),
    }


def _log_reward(sample: Mapping[str, Any]) -> float:
    """Of a held-out selection: what its weight follows from."""
    value = sample.get("log_likelihood", sample.get("log_reward"))
    return -math.inf if value is None else value


def _softmax(values: Sequence[float]) -> list[float]:
    if max(values) == -math.inf:
        return [0.0] * len(values)
    shifted = np.exp(np.asarray(values) - max(values))
    return (shifted / shifted.sum()).tolist()


def _short(value: float | None) -> float | None:
    """Four digits: a page of a million numbers should not carry seventeen of each. JSON has no
    number for what is not finite, such as a log-reward of -inf."""
    return float(f"{value:.4g}") if value is not None and math.isfinite(value) else None
