"""Greedy answers and the bound on held-out questions, through the same workers as training."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from dro_rl.evaluation import (
    EvaluatedExample,
    answer_recall,
    gold_recall,
    summarise,
)
from dro_rl.questions import seed_of
from dro_rl.records import Example, Rollout, Selection
from dro_rl.teams import Teams
from dro_rl.tracking.console import Advance, Console


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
    passes = 3 if teams.recipe.generator.is_none else 4
    with console.stage(_title(iteration), passes * len(examples), "question passes") as advance:
        greedy = teams.select(examples, 1, seed, advance, greedy=True)
        chosen = [r.selections[0] for r in greedy]
        sampled = teams.select(examples, samples, seed, advance, on_policy=True)
        made = _made(teams, chosen, sampled, advance)
        scale = teams.reward_scale if teams.recipe.generator.is_none else "linear"
    evaluated = [
        EvaluatedExample(
            r.example,
            s.documents,
            s.malformed,
            answer,
            likelihoods,
            tuple(z.logp for z in r.selections),
            log_rewards,
            scale,
        )
        for s, (answer, likelihoods, log_rewards), r in zip(chosen, made, sampled, strict=True)
    ]
    summary = summarise(evaluated, iteration=iteration, seconds=time.monotonic() - start)
    return summary, [_row(e, r) for e, r in zip(evaluated, sampled, strict=True)]


def _made(
    teams: Teams, chosen: Sequence[Selection], sampled: Sequence[Rollout], advance: Advance
) -> list[tuple[str | None, tuple[float, ...], tuple[float, ...]]]:
    """The generator's answer to each greedy selection and its likelihoods of the sampled ones; or,
    without one, their log-rewards."""
    if teams.recipe.generator.is_none:
        scored = teams.score(sampled, None, advance)
        return [(None, (), s.log_rewards) for s in scored]
    examples = [r.example for r in sampled]
    answers = teams.answer(examples, [s.documents for s in chosen], advance)
    likelihoods = teams.log_likelihoods(sampled, advance)
    return [(a, some, ()) for a, some in zip(answers, likelihoods, strict=True)]


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
        "em": e.em,
        "f1": e.f1,
        **{f"recall@{k}": answer_recall(e.example, e.documents, k) for k in (1, 3, 5)},
        "gold_recall": gold_recall(e.example, e.documents),
        "bound": e.bound,
        **({"reward": e.reward} if e.log_rewards else {}),
        "malformed": e.malformed,
        "documents": list(e.documents),
        "selected": [{"title": d.title, "text": d.text, "is_gold": d.is_gold} for d in chosen],
        "samples": [
            {"documents": list(s.documents), "logp": s.logp, **about}
            for s, about in zip(sampled.selections, _by_selection(e), strict=True)
        ],
    }


def _by_selection(e: EvaluatedExample) -> list[dict[str, float | None]]:
    """What is known of each sampled selection: JSON has no number for the logarithm of 0."""
    if e.log_likelihoods:
        return [{"log_likelihood": value} for value in e.log_likelihoods]
    return [{"log_reward": value if value > -math.inf else None} for value in e.log_rewards]
