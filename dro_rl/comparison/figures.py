"""Figures of a comparison: each metric against the selections drawn, a line an arm."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dro_rl.comparison.runs import Result
from dro_rl.comparison.spec import Comparison
from dro_rl.tracking.run_directory import write_text

# Okabe & Ito's colours, told apart by colour-blind readers; without their yellow, pale on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00")
_LINES = ("-", "--", "-.", ":")


@dataclass(frozen=True)
class Curve:
    """One arm's metric by selections drawn: over the seeds that got that far."""

    arm: str
    selections: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]


# file, axis, factor
FIGURES = (
    ("em", "exact match [%]", 100),
    ("f1", "F1 [%]", 100),
    ("gold_recall", "gold recall [%]", 100),
    ("bound", "bound [nats]", 1),
    ("reward", "reward of sampled selections (log-rewards in nats)", 1),
    ("effective_sample_size", "effective sample size", 1),
)


def curves(comparison: Comparison, results: Sequence[Result], metric: str) -> list[Curve]:
    """A curve an arm that has finished runs; none where the metric is not defined."""
    found = []
    for arm in comparison.arms:
        points: dict[int, list[float]] = {}
        for result in results:
            for drawn, summary in zip(result.selections, result.evaluations, strict=True):
                if result.arm == arm.name and summary.get(metric) is not None:
                    points.setdefault(drawn, []).append(summary[metric])
        if points:
            at = sorted(points)
            stacks = [points[x] for x in at]
            mean = [float(np.mean(s)) for s in stacks]
            found.append(Curve(arm.name, at, mean, [*map(min, stacks)], [*map(max, stacks)]))
    return found


def figures_data(comparison: Comparison, results: Sequence[Result]) -> list[dict[str, Any]]:
    """The curves of every metric that is defined, in the unit of its axis, for a page."""
    found = []
    for metric, axis, factor in FIGURES:
        scaled = [
            {
                "arm": curve.arm,
                "selections": curve.selections,
                **{k: [factor * v for v in getattr(curve, k)] for k in ("mean", "low", "high")},
            }
            for curve in curves(comparison, results, metric)
        ]
        if scaled:
            found.append({"title": axis, "curves": scaled})
    return found


def write_figures(comparison: Comparison, results: Sequence[Result]) -> list[Path]:
    """Write OUTPUT/figures/METRIC.svg; equal results give equal files. Returns their paths."""
    folder = comparison.output / "figures"
    folder.mkdir(exist_ok=True)
    written = []
    for metric, axis, factor in FIGURES:
        found = curves(comparison, results, metric)
        if found:
            names = [arm.name for arm in comparison.arms]
            write_text(folder / f"{metric}.svg", _drawn(found, names, axis, factor))
            written.append(folder / f"{metric}.svg")
    return written


def _drawn(found: Sequence[Curve], arms: Sequence[str], axis: str, factor: float) -> str:
    import matplotlib  # takes a second, and only the report needs it
    from matplotlib.figure import Figure

    # Identifiers in the file are salted at random otherwise.
    with matplotlib.rc_context({"svg.hashsalt": "dro_rl", "svg.fonttype": "none"}):
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        for curve in found:
            place = arms.index(curve.arm)  # an arm looks the same while others are still to come
            colour, line = _COLOURS[place % len(_COLOURS)], _LINES[place % len(_LINES)]
            x = curve.selections
            mean, low, high = (np.multiply(v, factor) for v in (curve.mean, curve.low, curve.high))
            axes.plot(x, mean, line, color=colour, label=curve.arm, marker=".")
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.set_xlabel("selections drawn")
        axes.set_ylabel(axis)
        axes.grid(alpha=0.3)
        axes.legend()
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()
