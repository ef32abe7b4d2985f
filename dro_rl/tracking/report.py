"""report.html: what runs did and learned, in one file that needs nothing else to be read.

`page/` holds the page; here it gets its data. What is small is JSON in the page; the rollouts are
compressed and unpacked by the browser when they are looked at.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dro_rl.errors import UserError
from dro_rl.evaluation.significance import paired_bootstrap
from dro_rl.recipe_file import read_settings
from dro_rl.tracking import stored
from dro_rl.tracking.browsing import held_out_rollouts, training_rollouts
from dro_rl.tracking.pages import page
from dro_rl.tracking.run_directory import RunDirectory, write_text

_HEADLINE = ("em", "f1", "recall@1", "recall@3", "recall@5", "gold_recall", "bound", "reward")
_STEP_METRICS = (
    "rollout/effective_sample_size",
    "rollout/largest_weight",
    "reward/best",
    "selector/loss",
    "generator/loss",
    "selector/grad_norm",
    "generator/grad_norm",
    "selector/logp_gap",
)
_POINTS = 400  # of a curve by step: more than a screen shows apart
_BINS = 20  # of a histogram


def write_report(runs: Sequence[RunDirectory], path: Path) -> None:
    """Write the report of one run, or of several side by side; a reader never sees half of it.

    Args:
        runs: at least one.
        path: of the page.
    Raises:
        UserError: a run has no evaluation yet, or the page cannot be written there.
    """
    for run in runs:
        _require_reportable(run)
    names = _names([run.path for run in runs])
    title = names[0] if len(runs) == 1 else f"{len(runs)} runs"
    data = {"title": title, "runs": [_run(r, n) for r, n in zip(runs, names, strict=True)]}
    blocks = {}
    for i, run in enumerate(runs):
        blocks[f"held-out-{i}"] = held_out_rollouts(run)
        blocks[f"training-{i}"] = training_rollouts(run)
    write_text(path, page("run", title, data, blocks))


def _require_reportable(run: RunDirectory) -> None:
    if not run.evaluations():
        raise UserError(
            f"{run.path}: has no evaluation yet, so there is nothing to report: wait until its "
            "warm start has been evaluated"
        )
    if not run.knows_candidates:
        raise UserError(
            f"{run.path}: was begun by a version that kept no candidates (it lacks "
            "evaluation/questions.parquet), so there is no report of it: its figures are in "
            "metrics.jsonl and evaluation/"
        )


class LiveReport:
    """A run's report.html, written again as the run goes on, for 5 % of its time at most."""

    def __init__(self, run: RunDirectory) -> None:
        self.run, self.due = run, 0.0

    def refresh(self) -> None:
        """Write it, unless it was written just now."""
        if time.monotonic() >= self.due:
            self.write()

    def write(self) -> None:
        """Write it, unless the run was begun by a version that had no reports."""
        if not self.run.knows_candidates:
            return
        start = time.monotonic()
        write_report([self.run], self.run.path / "report.html")
        self.due = time.monotonic() + 20 * (time.monotonic() - start)


def _names(paths: Sequence[Path]) -> list[str]:
    """What tells the runs apart: their folders below the one that they share."""
    whole = [path.absolute() for path in paths]
    if len(whole) == 1:
        return [whole[0].name]
    shared = os.path.commonpath([p.parent for p in whole])
    return [str(path.relative_to(shared)) for path in whole]


# --- one run --------------------------------------------------------------------------------------


def _run(run: RunDirectory, name: str) -> dict[str, Any]:
    evaluations = [stored.checked(e, stored.Summary, run.path) for e in run.evaluations()]
    evaluated = {e["iteration"]: _figures(run, e["iteration"]) for e in evaluations}
    recipe = run.path / "recipe.yaml"
    try:
        about, text = _about(read_settings(recipe)), recipe.read_text("utf-8")
    except (KeyError, TypeError) as error:
        raise stored.damaged(recipe, f"it lacks {error}") from error
    return {
        "name": name,
        "about": about,
        "recipe": text,
        "evaluations": evaluations,
        "headline": _headline(evaluations, evaluated),
        "movement": _movement(evaluated),
        "steps": _steps(run.steps()),
        "iterations": run.iterations(),
        "weights": _weights(run),
    }


def _figures(run: RunDirectory, iteration: int) -> list[dict[str, Any]]:
    """Of each held-out question what the page counts, without its texts."""
    return [
        {key: row.get(key) for key in ("example", "documents", *_HEADLINE)}
        for row in run.evaluated_questions(iteration, stored.Answered)
    ]


def _about(recipe: Mapping[str, Any]) -> str:
    """What a reader wants to know first, in a line."""
    algorithm, training = recipe["algorithm"], recipe["training"]
    learning = " and ".join(algorithm["train"])
    return (
        f"{algorithm['kind']}, m = {algorithm['samples']}; reward: {_named(recipe['reward'])}; "
        f"learning: {learning}; data: {recipe['data']['kind']}; seed {training['seed']}; "
        f"{training['iterations']} iterations planned"
    )


def _named(reward: Any) -> str:
    terms = reward if isinstance(reward, list) else [reward]
    return " + ".join(term["use"] for term in terms)


def _headline(
    evaluations: Sequence[Mapping[str, Any]], evaluated: Mapping[int, Sequence[Mapping[str, Any]]]
) -> list[dict[str, Any]]:
    """A row a figure: before, after, and the change with its 95 % interval over questions."""
    first, last = evaluations[0], evaluations[-1]
    rows = []
    for key in _HEADLINE:
        if first.get(key) is None:
            continue
        row = {"key": key, "before": first[key], "after": last[key]}
        if last is not first:
            before, after = (
                {r["example"]: r[key] for r in evaluated[e["iteration"]] if r[key] is not None}
                for e in (first, last)
            )
            change = paired_bootstrap([(before, after)])
            row |= {"change": change.mean, "low": change.low, "high": change.high}
        rows.append(row)
    return rows


def _movement(evaluated: Mapping[int, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Where the greedy selections went, by iteration.

    `changed`: share of held-out questions with other documents, or another order, than the warm
    start selected. `first`: share of questions whose first document stood at each place of the
    prompt; with shuffled candidates a selector that reads has no favourite place.
    """
    start = {r["example"]: r["documents"] for r in evaluated[min(evaluated)]}
    rows = []
    for iteration, questions in evaluated.items():
        places = [r["documents"][0] for r in questions if r["documents"]]
        counts = np.bincount(places) if places else np.zeros(0)
        moved = [r["documents"] != start[r["example"]] for r in questions]
        rows.append(
            {
                "iteration": iteration,
                "changed": float(np.mean(moved)),
                "first": (counts / len(questions)).tolist(),
            }
        )
    return rows


def _steps(rows: Sequence[Mapping[str, Any]]) -> dict[str, list]:
    """The metrics of optimiser steps as columns; neighbours are averaged in long runs."""
    size = max(1, math.ceil(len(rows) / _POINTS))
    parts = [rows[i : i + size] for i in range(0, len(rows), size)]
    columns = {"step": [part[-1]["step"] for part in parts]}
    for name in _STEP_METRICS:
        values = [_mean([row.get(name) for row in part]) for part in parts]
        if any(value is not None for value in values):
            columns[name] = values
    return columns


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if isinstance(value, int | float)]
    return sum(known) / len(known) if known else None


def _weights(run: RunDirectory) -> list[dict[str, Any]]:
    """How the selector's coefficients are spread, by iteration: counts in equal bins."""
    drawn = {row["iteration"]: run.selector_weights(row["iteration"]) for row in run.iterations()}
    if not drawn:
        return []
    low = min(0.0, *(min(values) for values in drawn.values()))
    high = max(1.0, *(max(values) for values in drawn.values()))
    found = []
    for iteration, values in drawn.items():
        counts, edges = np.histogram(values, bins=_BINS, range=(low, high))
        found.append({"iteration": iteration, "counts": counts.tolist(), "edges": edges.tolist()})
    return found
