"""Greedy answers and the bound on held-out questions, through the same workers as training."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from dro_rl.evaluation import (
    EvaluatedExample,
    answer_recall,
    exact_match,
    f1,
    gold_recall,
    log_mean_exp,
    summarise,
)
from dro_rl.questions import seed_of
from dro_rl.records import Example, Rollout
from dro_rl.teams import Teams
from dro_rl.tracking.console import Console


def evaluate(
    teams: Teams, examples: Sequence[Example], iteration: int, console: Console
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The summary of evaluation/iteration-NNNN.json, and a row a question.

    The m selections behind the bound are drawn with the same seed in every iteration, so that the
    bound's change has less noise than its level.
    """
    start = time.monotonic()
    samples = teams.recipe.evaluation.samples
    seed = seed_of(teams.recipe, "evaluation", 0)
    with console.stage(_title(iteration), 4 * len(examples), "question passes") as advance:
        greedy = teams.select(examples, 1, seed, advance, greedy=True)
        chosen = [r.selections[0] for r in greedy]
        answers = teams.answer(examples, [s.documents for s in chosen], advance)
        sampled = teams.select(examples, samples, seed, advance, on_policy=True)
        likelihoods = teams.log_likelihoods(sampled, advance)
    evaluated = [
        EvaluatedExample(
            example, s.documents, s.malformed, answer, lls, tuple(z.logp for z in r.selections)
        )
        for example, s, answer, lls, r in zip(
            examples, chosen, answers, likelihoods, sampled, strict=True
        )
    ]
    summary = summarise(evaluated, iteration=iteration, seconds=time.monotonic() - start)
    return summary, [_row(e, r) for e, r in zip(evaluated, sampled, strict=True)]


def _title(iteration: int) -> str:
    return "evaluate warm start" if iteration == 0 else f"iteration {iteration}: evaluate"


def _row(e: EvaluatedExample, sampled: Rollout) -> dict[str, Any]:
    """A row of evaluation/iteration-NNNN.jsonl; documents are numbered from 0."""
    chosen = [e.example.candidates[i] for i in e.documents]
    return {
        "example": e.example.id,
        "question": e.example.question,
        "answers": list(e.example.answers),
        "answer": e.answer,
        "em": exact_match(e.answer, e.example.answers),
        "f1": f1(e.answer, e.example.answers, e.example.metric),
        **{f"recall@{k}": answer_recall(e.example, e.documents, k) for k in (1, 3, 5)},
        "gold_recall": gold_recall(e.example, e.documents),
        "bound": log_mean_exp(e.log_likelihoods),
        "malformed": e.malformed,
        "documents": list(e.documents),
        "selected": [{"title": d.title, "text": d.text, "is_gold": d.is_gold} for d in chosen],
        "samples": [
            {"documents": list(s.documents), "logp": s.logp, "log_likelihood": log_likelihood}
            for s, log_likelihood in zip(sampled.selections, e.log_likelihoods, strict=True)
        ],
    }
