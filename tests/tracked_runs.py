"""Runs that dashboards follow, and what these should then have."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from dro_rl.recipe import Recipe
from dro_rl.tracking.run_directory import RunDirectory
from dro_rl.tracking.trackers import following
from tests.made_runs import recipe

Curves = dict[str, dict[int, float]]


def recipe_with(folder: Path, *names: str) -> Recipe:
    place = str(folder / "runs" / "one")
    return recipe(folder, tracking={"run_dir": place, "trackers": list(names), "project": "tests"})


def evaluate(run: RunDirectory) -> None:
    run.write_evaluation("iteration-0000", {"iteration": 0, "em": 0.25, "gold_recall": None}, [])


def step(run: RunDirectory, number: int, loss: float = 0.5) -> None:
    iteration = 1 + (number - 1) // 2
    run.append_metrics({"iteration": iteration, "step": number, "selector/loss": loss / number})


def end(run: RunDirectory, iteration: int) -> None:
    figures = {"evaluation/em": 0.25 + iteration / 10, "evaluation/recall@1": math.nan}
    run.append_metrics({"iteration": iteration, **figures, "time/learn": 3.5 * iteration})


def train(run: RunDirectory, settings: Recipe, say=lambda text: None) -> None:
    """Two iterations of two steps."""
    with following(settings, run, say):
        evaluate(run)
        for number in (1, 2, 3, 4):
            step(run, number)
            if number % 2 == 0:
                end(run, number // 2)


def killed(run: RunDirectory, settings: Recipe) -> None:
    """It has its first iteration's checkpoint, and one step of the second that was never saved."""
    with following(settings, run, lambda text: None):
        evaluate(run)
        step(run, 1)
        step(run, 2)
        end(run, 1)
        step(run, 3, loss=7.0)


def resume(run: RunDirectory, settings: Recipe) -> None:
    run.drop_after(1, 2)
    with following(settings, run, lambda text: None):
        step(run, 3)
        step(run, 4)
        end(run, 2)


def expected(run: RunDirectory) -> Curves:
    """What metrics.jsonl and the warm start say, by name and step."""
    curves: Curves = defaultdict(dict)
    for row in run.evaluations():
        curves["evaluation/em"][0] = row["em"]
        curves["iteration"][0] = 0.0
    last = 0
    for row in [*run.history()][1:]:
        last = row.get("step", last)
        for name, value in row.items():
            if name != "step" and value is not None:
                curves[name][last] = value
    return curves


def in_tensorboard(run: RunDirectory) -> Curves:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    events = EventAccumulator(str(run.path / "tensorboard")).Reload()
    curves: Curves = {}
    for name in events.Tags()["scalars"]:
        rows = events.Scalars(name)
        curves[name] = {row.step: row.value for row in rows}
        assert len(rows) == len(curves[name]), f"{name}: a step is there twice"
    return curves


def close(curves: Curves) -> dict[str, Any]:
    """TensorBoard keeps 32 bits."""
    return {name: pytest.approx(steps, rel=1e-6) for name, steps in curves.items()}
