"""The figures of a comparison as tables of text: over seeds by arm, and paired with the first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dro_rl.comparison.fairness import PLACE, covered, differing, flatten
from dro_rl.comparison.runs import Result
from dro_rl.comparison.spec import Comparison
from dro_rl.evaluation.significance import paired_bootstrap, t_half_width


@dataclass(frozen=True)
class Metric:
    """A figure and how it is shown: in rates (percent) or as it is."""

    key: str
    heading: str
    digits: int
    factor: float = 1

    def text(self, value: float, sign: str = "") -> str:
        return f"{value * self.factor:{sign},.{self.digits}f}"


METRICS = (
    Metric("em", "EM", 1, 100),
    Metric("f1", "F1", 1, 100),
    Metric("recall@1", "R@1", 1, 100),
    Metric("recall@3", "R@3", 1, 100),
    Metric("recall@5", "R@5", 1, 100),
    Metric("gold_recall", "gold", 1, 100),
    Metric("bound", "bound", 3),
    Metric("reward", "reward", 3),
    Metric("malformed", "malf.", 1, 100),
    Metric("effective_sample_size", "ESS", 2),
    Metric("train_seconds", "seconds", 0),
    Metric("selections_drawn", "selections", 0),
)
_OF_ANSWERS = ("em", "f1", "bound")
_OF_SELECTIONS = ("gold_recall", "reward")  # without a generator
_ANSWERS_ALONE = (*_OF_ANSWERS, "effective_sample_size")


@dataclass(frozen=True)
class Table:
    """Headings and rows of text; the first column is words."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        lines = [self.headings, ("---", *("---:",) * (len(self.headings) - 1)), *self.rows]
        return "".join("| " + " | ".join(_cell(c) for c in line) + " |\n" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def headline(results: Sequence[Result]) -> tuple[Metric, ...]:
    """The figures by which arms are compared."""
    keys = _OF_ANSWERS if _are_answered(results) else _OF_SELECTIONS
    return tuple(m for m in METRICS if m.key in keys)


def _are_answered(results: Sequence[Result]) -> bool:
    return all(r.final.get("em") is not None for r in results)


def arms_table(comparison: Comparison, results: Sequence[Result]) -> Table:
    """A row an arm: the last evaluation as mean over seeds, with 95 % interval half-widths."""
    hidden = ("reward",) if _are_answered(results) else _ANSWERS_ALONE
    shown = [m for m in METRICS if m.key not in hidden]
    rows = []
    for arm in comparison.arms:
        finals = [r.final for r in results if r.arm == arm.name]
        if finals:
            cells = [_with_interval(m, [f.get(m.key) for f in finals]) for m in shown]
            rows.append((arm.name, str(len(finals)), *cells))
    return Table(("arm", "seeds", *(m.heading for m in shown)), tuple(rows))


def _with_interval(metric: Metric, values: Sequence[float | None]) -> str:
    known = [v for v in values if v is not None]
    if len(known) < len(values):
        return "-"  # not defined on these questions
    mean, half = float(np.mean(known)), t_half_width(known)
    # A budget is the same in every seed, and needs no ± 0.
    if half is None or (len(set(known)) == 1 and metric.key == "selections_drawn"):
        return metric.text(mean)
    return f"{metric.text(mean)} ± {metric.text(half)}"


def iterations_table(comparison: Comparison, results: Sequence[Result]) -> Table:
    """A row an arm and figure: its mean over seeds after each iteration that was evaluated, the
    warm start first."""
    at = sorted({e["iteration"] for r in results for e in r.evaluations})
    rows = []
    for metric in headline(results):
        for arm in comparison.arms:
            runs = [r.evaluations for r in results if r.arm == arm.name]
            if runs:
                found = [(e["iteration"], e.get(metric.key)) for run in runs for e in run]
                cells = [_mean(metric, [v for when, v in found if when == i]) for i in at]
                rows.append((f"{metric.heading}, {arm.name}", *cells))
    names = ["warm start" if i == 0 else str(i) for i in at]
    return Table(("mean over seeds", *names), tuple(rows))


def _mean(metric: Metric, values: Sequence[float | None]) -> str:
    known = [v for v in values if v is not None]
    return metric.text(float(np.mean(known))) if known and len(known) == len(values) else "-"


def paired_table(comparison: Comparison, results: Sequence[Result]) -> Table:
    """A row an arm but the first: differences to it, `*` where the interval excludes 0."""
    first, *others = (arm.name for arm in comparison.arms)
    shown = headline(results)
    by_run = {(r.arm, r.seed): r for r in results}
    rows = []
    for other in others:
        seeds = [s for s in comparison.seeds if {(first, s), (other, s)} <= by_run.keys()]
        if seeds:
            pairs = [(by_run[first, s], by_run[other, s]) for s in seeds]
            cells = [_difference(m, pairs) for m in shown]
            rows.append((f"{other} - {first}", str(len(seeds)), *cells))
    return Table(("arms", "seeds", *(m.heading for m in shown)), tuple(rows))


def _difference(metric: Metric, pairs: Sequence[tuple[Result, Result]]) -> str:
    scores = [(a.scores(metric.key), b.scores(metric.key)) for a, b in pairs]
    if not all(a and b for a, b in scores):
        return "-"  # not defined on these questions, or for one of the arms
    d = paired_bootstrap(scores)
    mean, low, high = (metric.text(value, "+") for value in (d.mean, d.low, d.high))
    interval = f"{mean} [{low}, {high}]"
    return f"{interval} *" if d.excludes_zero else interval


def settings_table(comparison: Comparison) -> Table:
    """A row a setting that is not the same in all arms."""
    keys = [
        key
        for key in differing([arm.recipe.resolved() for arm in comparison.arms])
        if not covered(key, PLACE)
    ]
    shown = [flatten(arm.shown) for arm in comparison.arms]
    rows = [(key, *(_value(flat.get(key)) for flat in shown)) for key in keys]
    # One arm may lack a setting that another has without a value: that is no difference to see.
    told = tuple(row for row in rows if set(row[1:]) != {"-"})
    return Table(("setting", *(arm.name for arm in comparison.arms)), told)


def _value(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "-" if value is None else str(value)
