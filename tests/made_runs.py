"""A run directory as a short run leaves it, without running anything."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from dro_rl.evaluation import exact_match, f1
from dro_rl.recipe import Recipe
from dro_rl.records import (
    Document,
    Example,
    Rollout,
    ScoredRollout,
    Selection,
    WeightedRollout,
)
from dro_rl.tracking.run_directory import RunDirectory


def question(number: int, text: str = "Where was it?") -> Example:
    documents = tuple(Document(f"Title {number}.{i}", f"Text {i}", i == 0) for i in range(3))
    return Example(f"q{number}", text, ("Lyon",), documents, scores=(0.5, 0.25, 0.125))


def recipe(folder: Path, **settings) -> Recipe:
    return Recipe.model_validate(
        {
            "data": {"kind": "facts"},
            "retrieval": {"kind": "given", "candidates": 3},
            "selector": {"model": "m", "documents": 2},
            "generator": {"model": "m"},
            "tracking": {"run_dir": str(folder)},
            **settings,
        }
    )


def make_run(
    folder: Path, questions: Sequence[Example], iterations: int = 2, good: int = 2, every: int = 1
) -> RunDirectory:
    """The selector learns to take the gold document, and the generator then answers right.

    Args:
        good: samples of a question that select the gold document; in training there is one more,
            which is malformed.
        every: of the iterations, the last beside them, this one is evaluated.
    """
    settings = {"training": {"iterations": iterations}} if every > 1 else {}
    run = RunDirectory.create(recipe(folder, evaluation={"every": every}, **settings))
    run.write_held_out(questions)
    for iteration in range(iterations + 1):
        if iteration % every == 0 or iteration == iterations:
            _evaluate(run, questions, iteration, good)
        if iteration:
            iterate(run, questions, iteration, good)
    return run


def _evaluate(run: RunDirectory, questions: Sequence[Example], iteration: int, good: int) -> None:
    documents = [0] if iteration else [1, 2]
    answer = "Lyon" if iteration else "in Paris"
    bound = -1.0 / (iteration + 1)
    rows = [
        {
            "example": e.id,
            "question": e.question,
            "answers": list(e.answers),
            "answer": answer,
            "em": exact_match(answer, e.answers),
            "f1": f1(answer, e.answers),
            **{f"recall@{k}": float(iteration > 0) for k in (1, 3, 5)},
            "gold_recall": float(iteration > 0),
            "bound": bound,
            "malformed": False,
            "documents": documents,
            "selected": [],
            "samples": [{"documents": [0], "logp": -0.5, "log_likelihood": bound}] * good,
        }
        for e in questions
    ]
    rates = dict.fromkeys(("em", "f1", "gold_recall", "recall@1", "recall@3", "recall@5"))
    summary = {"iteration": iteration, "questions": len(rows), "bound": bound, "bound_se": 0.1}
    summary |= {k: sum(r[k] for r in rows) / len(rows) for k in rates}
    summary |= {"effective_sample_size": 2.0, "malformed": 0.0, "selector_entropy": 0.5}
    run.write_evaluation(f"iteration-{iteration:04d}", {**summary, "seconds": 1.0}, rows)


def iterate(run: RunDirectory, questions: Sequence[Example], iteration: int, good: int = 2) -> None:
    """One iteration's rollouts and metrics; see `make_run`."""
    gold = Selection("[1]", (5,), (-0.25,), (0,), False)
    bad = Selection("nonsense", (6,), (-2.0,), (), True)
    rollouts = [Rollout(e, (1, 2), (*[gold] * good, bad), iteration - 1) for e in questions]
    weights = (*[1 / good] * good, 0.0)
    run.write_rollouts(
        iteration,
        [ScoredRollout(r, (*[-0.5] * good, -math.inf)) for r in rollouts],
        [WeightedRollout(r, weights, weights) for r in rollouts],
    )
    run.append_metrics({"iteration": iteration, "step": iteration, "selector/loss": 1 / iteration})
    run.append_metrics(
        {
            "iteration": iteration,
            "time/learn": 3.0,
            "tokens/learn": 600,
            "mfu/learn": 0.25,
            "time/other": 1.0,
            "memory/trainer": 1.5,
        }
    )
