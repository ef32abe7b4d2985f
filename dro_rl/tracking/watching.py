"""Where a run stands, read from its directory alone: it may be at work, finished, killed or not
there yet."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from dro_rl.recipe import Recipe
from dro_rl.recipe_file import load_recipe
from dro_rl.tracking import stored
from dro_rl.tracking.run_directory import RunDirectory

T = TypeVar("T")
Example = tuple[dict[str, Any], dict[str, Any]]  # a question before training, and now
_FIRST = 900.0  # seconds without a word that are not unusual before the first iteration has ended


@dataclass(frozen=True, slots=True)
class Status:
    """A look at a run.

    `steps` and `ended` are the rows of metrics.jsonl of optimiser steps and of whole iterations;
    `an_iteration` is the number of steps of one, None where it is not known yet.
    """

    recipe: Recipe
    done: int
    evaluations: list[dict[str, Any]]
    steps: list[dict[str, Any]]
    ended: list[dict[str, Any]]
    an_iteration: int | None
    sampled: bool
    learned: bool
    silent: float

    @property
    def iterations(self) -> int:
        """As many as the recipe asks for."""
        return self.recipe.training.iterations

    @property
    def finished(self) -> bool:
        """Whether all iterations have been done, or it stopped early."""
        early = self.recipe.training.early_stop
        if self.done >= self.iterations:
            return True
        if early is None or self.done == 0:
            return False
        found = self.recipe.counting(self.evaluations)
        return early.stops([e for e in found if e["iteration"] <= self.done])

    @property
    def stage(self) -> str:
        """What it is at, as far as files tell."""
        if self.finished:
            early = "" if self.done >= self.iterations else ", stopped early"
            return f"finished after iteration {self.done}{early}"
        if not self.evaluations:
            return "starting: data, engines, evaluation of the warm start"
        where = f"iteration {self.done + 1} of {self.iterations}"
        if self.evaluations[-1]["iteration"] > self.done:
            return f"{where}: writing the checkpoint"
        if self.learned:
            due = self.recipe.evaluates(self.done + 1)
            return f"{where}: {'evaluating' if due else 'writing the checkpoint'}"
        if not (self.sampled or self.step):
            return f"{where}: sampling selections"
        of = f" of {self.an_iteration}" if self.an_iteration else ""
        return f"{where}: rewards and learning, {self.step}{of} steps taken"

    @property
    def step(self) -> int:
        """Optimiser steps that the iteration at work has taken."""
        return sum(row["iteration"] == self.done + 1 for row in self.steps)

    @property
    def share(self) -> float:
        """How much of the run is done, in [0, 1]: iterations, and steps of the one at work."""
        part = min(1.0, self.step / self.an_iteration) if self.an_iteration else 0.0
        return 1.0 if self.finished else (self.done + part) / self.iterations

    @property
    def seconds_left(self) -> float | None:
        """By the last three iterations and the last evaluation; None before an iteration has
        ended."""
        stages = [timed(row) for row in self.ended[-3:]]
        if not stages or self.finished:
            return None
        took = sum(v for row in stages for k, v in row.items() if k != "evaluate") / len(stages)
        evaluated = {e["iteration"] for e in self.evaluations}
        to_come = {i for i in range(self.done + 1, self.iterations + 1) if self.recipe.evaluates(i)}
        left = took * (1 - self.share) * self.iterations
        return left + len(to_come - evaluated) * self.evaluating

    @property
    def evaluating(self) -> float:
        """Seconds that the last evaluation took; 0 where they are not known."""
        seconds = self.evaluations[-1].get("seconds") if self.evaluations else None
        return seconds if isinstance(seconds, int | float) else 0.0

    @property
    def unusually_silent(self) -> bool:
        """Whether nothing was written for longer than its longest stage took, twice over."""
        longest = max((max(timed(row).values(), default=0.0) for row in self.ended), default=None)
        usual = _FIRST if longest is None else 2 * max(longest, self.evaluating) + 60
        return not self.finished and self.silent > usual


def timed(row: dict[str, Any]) -> dict[str, float]:
    """Seconds by stage, of an iteration's row."""
    found = {k.removeprefix("time/"): v for k, v in row.items() if k.startswith("time/")}
    return {k: v for k, v in found.items() if isinstance(v, int | float)}


class _Metrics:
    """The whole lines of metrics.jsonl, which is read on from where it ended at the last look: that
    of a long run has many. A resumed run puts another file in its place."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file, self._end, self._rows = -1, 0, list[dict[str, Any]]()

    def rows(self) -> list[dict[str, Any]]:
        try:
            with self.path.open("rb") as file:
                self._read_on(file)
        except FileNotFoundError:
            self._file, self._rows = -1, []  # the next one may have its number
        return self._rows

    def _read_on(self, file: BinaryIO) -> None:
        now = os.fstat(file.fileno())
        if now.st_ino != self._file or now.st_size < self._end:
            self._file, self._end, self._rows = now.st_ino, 0, []
        file.seek(self._end)
        for line in file:
            if not line.endswith(b"\n"):  # still being written
                return
            place = f"{self.path}, line {len(self._rows) + 1}"
            self._rows.append(stored.read_line(line, place, stored.Iteration))
            self._end += len(line)


class Watcher:
    """Looks at a run again and again, and reads what has changed."""

    def __init__(self, path: Path) -> None:
        self.run = RunDirectory(path)
        self._metrics = _Metrics(path / "metrics.jsonl")
        self._known: dict[Path, tuple[tuple[int, int], Any]] = {}
        self._shown: tuple[tuple[int, int], Example | None] = ((-1, -1), None)

    def look(self) -> Status | None:
        """Where it stands; None where there is no run yet.

        Raises:
            UserError: a file is damaged, or was removed while it was read.
        """
        path = self.run.path
        recipe = self._fresh(path / "recipe.yaml", lambda: load_recipe(str(path / "recipe.yaml")))
        if recipe is None:
            return None
        evaluations = self._fresh(path / "evaluation", self.run.evaluations) or []
        rows = self._metrics.rows()
        done = max((int(p.name[10:]) for p in path.glob("checkpoints/iteration-????")), default=0)
        steps = [row for row in rows if "step" in row]
        parts = sorted(path.glob(f"checkpoints/iteration-{done + 1:04d}-part-*[0-9]"))
        an_iteration = _steps_an_iteration(recipe, steps, done, parts)
        drawn = (path / "rollouts" / f"iteration-{done + 1:04d}.parquet").is_file()
        ours = recipe.algorithm.kind != "trl_grpo"  # which writes them before it learns
        taken = sum(row["iteration"] == done + 1 for row in steps)
        return Status(
            recipe,
            done,
            [e for e in evaluations if e["iteration"] <= done + 1],
            steps,
            [row for row in rows if "step" not in row],
            an_iteration,
            sampled=bool(parts) or drawn,
            learned=(drawn and ours) or (an_iteration is not None and taken >= an_iteration > 0),
            silent=time.time() - self._last_change(),
        )

    def example(self, number: int) -> Example | None:
        """A held-out question as the warm start and the last evaluation have it, the `number`-th
        where they are counted round and round; None before the first evaluation."""
        evaluations = self._fresh(self.run.path / "evaluation", self.run.evaluations)
        if not evaluations or not evaluations[-1].get("questions"):
            return None
        place, last = number % evaluations[-1]["questions"], evaluations[-1]["iteration"]
        if self._shown[0] != (place, last):
            rows = [self._row(iteration, place) for iteration in (0, last)]
            self._shown = ((place, last), (rows[0], rows[1]) if all(rows) else None)
        return self._shown[1]

    def _row(self, iteration: int, place: int) -> dict[str, Any]:
        rows = self.run.evaluated_questions(iteration, stored.Shown)
        return next(islice(rows, place, None), {})

    def _last_change(self) -> float:
        folders = ("", "evaluation", "rollouts", "checkpoints", "metrics.jsonl")
        places = [self.run.path / name for name in folders]
        return max(place.stat().st_mtime for place in places if place.exists())

    def _fresh(self, path: Path, read: Callable[[], T]) -> T | None:
        """What was read of a file or folder, again where it has changed; None where it is not."""
        try:
            stat = path.stat()
        except FileNotFoundError:
            return None
        sign = (stat.st_mtime_ns, stat.st_size)
        if path not in self._known or self._known[path][0] != sign:
            self._known[path] = (sign, read())
        return self._known[path][1]


def _steps_an_iteration(
    recipe: Recipe, steps: list[dict[str, Any]], done: int, parts: list[Path]
) -> int | None:
    """From the last whole iteration, or from how many questions have been sampled for."""
    if done:
        return sum(row["iteration"] == done for row in steps) or None
    training = recipe.training
    questions = training.questions_per_iteration
    if questions == "all":
        questions = _rows(parts[-1] / "rollouts.parquet") if parts else 0
    return math.ceil(questions / training.batch_size) * training.epochs or None


def _rows(path: Path) -> int:
    import pyarrow.parquet as pq

    try:
        return pq.read_metadata(path).num_rows
    except FileNotFoundError:  # the next save has taken its place
        return 0
