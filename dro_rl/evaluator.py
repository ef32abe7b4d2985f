"""Greedy answers and the bound on held-out questions, through the same workers as training."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from dro_rl.evaluation import EvaluatedExample, exact_match, f1, log_mean_exp, summarise
from dro_rl.questions import seed_of
from dro_rl.records import Example
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
    return summary, [_row(e) for e in evaluated]


def _title(iteration: int) -> str:
    return "evaluate warm start" if iteration == 0 else f"iteration {iteration}: evaluate"


def _row(e: EvaluatedExample) -> dict[str, Any]:
    chosen = [e.example.candidates[i] for i in e.documents]
    return {
        "example": e.example.id,
        "question": e.example.question,
        "answers": list(e.example.answers),
        "answer": e.answer,
        "em": exact_match(e.answer, e.example.answers),
        "f1": f1(e.answer, e.example.answers, e.example.metric),
        "bound": log_mean_exp(e.log_likelihoods),
        "selected": [{"title": d.title, "text": d.text, "is_gold": d.is_gold} for d in chosen],
    }
