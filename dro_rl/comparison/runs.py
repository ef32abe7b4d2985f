"""The runs of a comparison: one directory an arm and seed, how far each is, and what it found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

from dro_rl import at_work, checkpoint, progress
from dro_rl.comparison.fairness import PLACE, covered, differing, flatten
from dro_rl.comparison.spec import Comparison
from dro_rl.errors import UserError
from dro_rl.recipe import Recipe
from dro_rl.recipe_file import load_recipe
from dro_rl.tracking.run_directory import RunDirectory

State = Literal["new", "begun", "resumable", "finished"]


@dataclass(frozen=True, eq=False)
class Run:
    """One arm with one seed; `recipe` is what `dro-rl train` is given."""

    arm: str
    seed: int
    recipe: Recipe
    folder: Path  # of the run directory

    @property
    def recipe_file(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.yaml")

    @property
    def log(self) -> Path:
        """What the command said, standard error included."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def title(self) -> str:
        return f"{self.arm} seed {self.seed}"

    def state(self) -> State:
        """How far it is: `begun` has nothing to go on from.

        Raises:
            UserError: the folder holds another experiment, or something that is not a run.
        """
        if not (self.folder / "recipe.yaml").is_file():
            self._check_empty()
            return "begun" if self.folder.exists() else "new"
        self._check_same()
        directory = RunDirectory(self.folder)
        if checkpoint.latest(directory) == 0 and not progress.saves(directory, 1):
            return "begun"
        finished = checkpoint.is_finished(directory, self.recipe)
        return "finished" if finished else "resumable"

    def clear(self, say: Callable[[str], object]) -> State:
        """Remove what a run left that never came to a checkpoint.

        Args:
            say: is told of a wait for another machine's sign of life.
        Returns:
            `new`, or how far it has come meanwhile by another command: then it stays.
        Raises:
            UserError: another command is at work on it.
        """
        with at_work.at_work(self.folder, say, placed_by="output"):
            if (state := self.state()) != "begun":
                return state
            for path in self.folder.iterdir():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                elif path.name != at_work.NAME:
                    path.unlink()
        with suppress(OSError):  # another command has begun it
            self.folder.rmdir()
        return "new"

    def _check_empty(self) -> None:
        """A run that was killed before it had a recipe has no other file but that it is at work."""
        found = [p for p in self.folder.rglob("*") if p.is_file()]
        ours = ("recipe.yaml.", at_work.NAME)
        strangers = [p for p in found if not p.name.startswith(ours)]
        if strangers:
            raise UserError(
                f"{self.folder}: holds {strangers[0].name} and is not a run: give another place "
                "with output=..., or delete it"
            )

    def _check_same(self) -> None:
        here = load_recipe(str(self.folder / "recipe.yaml")).resolved()
        wanted = self.recipe.resolved()
        for key in differing((here, wanted)):
            if not covered(key, PLACE):
                raise UserError(
                    f"{self.folder}: was run with {key}: {flatten(here).get(key)!r}, and arm "
                    f"{self.arm} now has {flatten(wanted).get(key)!r}: give another place with "
                    "output=..., or delete that run"
                )


def runs_of(comparison: Comparison) -> list[Run]:
    """All runs, seed by seed, so that an interrupted comparison has all arms of its first seeds."""
    return [
        Run(arm.name, seed, _placed(arm.recipe, folder, seed), folder)
        for seed in comparison.seeds
        for arm in comparison.arms
        for folder in [comparison.output / arm.name / f"seed-{seed}"]
    ]


def _placed(recipe: Recipe, folder: Path, seed: int) -> Recipe:
    settings = recipe.resolved()
    settings["training"]["seed"] = seed
    settings["tracking"]["run_dir"] = str(folder)
    return Recipe.model_validate(settings)


# --- results --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """What a finished run found. Lists are by evaluation, the warm start's first."""

    arm: str
    seed: int
    evaluations: tuple[Mapping[str, Any], ...]
    selections: tuple[int, ...]  # drawn so far
    seconds: tuple[float, ...]  # of training so far, evaluation not counted
    questions: Mapping[str, Mapping[str, Any]]  # the last evaluation's, by id

    def scores(self, metric: str) -> dict[str, float]:
        """A figure of every held-out question that has it, after the last iteration."""
        found = {question: row.get(metric) for question, row in self.questions.items()}
        return {question: value for question, value in found.items() if value is not None}

    @property
    def final(self) -> dict[str, Any]:
        """The last evaluation, with what it took to get there."""
        cost = {"selections_drawn": self.selections[-1], "train_seconds": self.seconds[-1]}
        return {**self.evaluations[-1], **cost}


def read_result(run: Run) -> Result:
    """The result of a finished run."""
    directory = RunDirectory(run.folder)
    evaluations = directory.evaluations()
    at = [e["iteration"] for e in evaluations]
    took, last = _seconds(run.folder / "metrics.jsonl"), at[-1]
    drawn = [*accumulate(_drawn(run.folder, i) for i in range(last + 1))]
    seconds = [*accumulate(took.get(i, 0.0) for i in range(last + 1))]
    return Result(
        run.arm,
        run.seed,
        tuple(evaluations),
        tuple(drawn[i] for i in at),
        tuple(seconds[i] for i in at),
        {row["example"]: row for row in directory.evaluated_questions(last)},
    )


def _drawn(folder: Path, iteration: int) -> int:
    """Selections of one iteration, from the number of rows alone."""
    if iteration == 0:
        return 0
    import pyarrow.parquet as pq  # takes a second, and reading the comparison needs none of it

    return pq.read_metadata(folder / "rollouts" / f"iteration-{iteration:04d}.parquet").num_rows


def _seconds(metrics: Path) -> dict[int, float]:
    """Seconds of training by iteration."""
    with metrics.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return {
        row["iteration"]: sum(
            v for k, v in row.items() if k.startswith("time/") and k != "time/evaluate"
        )
        for row in rows
        if "step" not in row
    }
