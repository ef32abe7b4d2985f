"""The run directory: recipe, metrics, rollouts, evaluations, checkpoints."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dro_rl import durable
from dro_rl.durable import write_text
from dro_rl.errors import UserError
from dro_rl.recipe import Recipe
from dro_rl.records import Example, ScoredRollout, WeightedRollout
from dro_rl.sections.training import best_of
from dro_rl.tracking import drawn, stored
from dro_rl.tracking.versions import environment


class RunDirectory:
    """Paths and writers of one run. Use `create` or `open`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.followers: list[Callable[[Mapping[str, Any]], object]] = []  # told each row of metrics

    def __fspath__(self) -> str:
        return str(self.path)

    @classmethod
    def of(cls, recipe: Recipe) -> RunDirectory:
        """Where a recipe's run is, or will be."""
        return cls(Path(recipe.tracking.run_dir).expanduser())

    @property
    def begun(self) -> bool:
        """Whether there is a run here."""
        return (self.path / "recipe.yaml").is_file()

    @classmethod
    def check(cls, recipe: Recipe) -> None:
        """Refuse a place that a run could not be written to, before any work; leaves no trace.

        Raises:
            UserError: it holds a run already, or cannot be written.
        """
        path = Path(recipe.tracking.run_dir).expanduser().absolute()
        made: list[Path] = []
        try:
            if (path / "recipe.yaml").exists():
                raise UserError(
                    f"{path}: holds a run already. Continue it with --resume {path} or "
                    "tracking.resume=auto, or give another place with tracking.run_dir=..."
                )
            made = [p for p in (path, *path.parents) if not p.exists()]
            path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path):
                pass
        except OSError as error:
            raise UserError(
                f"{path}: cannot be written ({error.strerror}): give a writable place with "
                "tracking.run_dir=..."
            ) from error
        finally:
            for folder in made:
                if os.path.isdir(folder):
                    folder.rmdir()

    @classmethod
    def create(cls, recipe: Recipe) -> RunDirectory:
        """A new run's directory, with its recipe in it."""
        run = cls.of(recipe)
        for folder in ("checkpoints", "evaluation", "rollouts"):
            (run.path / folder).mkdir(parents=True, exist_ok=True)
        run.write_recipe(recipe)
        return run

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """An existing run.

        Raises:
            UserError: there is no run there.
        """
        if not (path / "recipe.yaml").is_file() or not (path / "checkpoints").is_dir():
            raise UserError(
                f"{path}: not a run directory (it lacks recipe.yaml or checkpoints/): give the "
                "folder that a run's tracking.run_dir names"
            )
        return cls(path)

    # --- recipe ---------------------------------------------------------------------------------

    def write_recipe(self, recipe: Recipe) -> None:
        """The resolved recipe, seeds included, and the versions that ran it, as a comment."""
        text = yaml.safe_dump(recipe.resolved(), sort_keys=False, allow_unicode=True)
        versions = "".join(f"# {line}\n" for line in environment())
        write_text(self.path / "recipe.yaml", versions + text)

    # --- evaluations ----------------------------------------------------------------------------

    def write_evaluation(
        self, name: str, summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
    ) -> Path:
        """The summary as one flat JSON object, and a JSON line a question beside it.

        `name` is iteration-NNNN for the run's own history. Returns the summary's path.
        """
        folder = self.path / "evaluation"
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_text(folder / f"{name}.jsonl", lines)
        write_text(folder / f"{name}.json", json.dumps(_plain(summary), indent=1) + "\n")
        if name == "iteration-0000":
            self._tell(_warm_start(summary))
        return folder / f"{name}.json"

    def evaluations(self) -> list[dict[str, Any]]:
        """Summaries of the iterations that were evaluated, in order, the warm start first.

        Raises:
            UserError: one is damaged.
        """
        found = []
        for path in sorted((self.path / "evaluation").glob("iteration-*.json")):
            summary = stored.read_json(path, stored.Iteration)
            if path.stem != f"iteration-{summary['iteration']:04d}":
                raise stored.damaged(path, f"it says that it is of {summary['iteration']}")
            found.append(summary)
        return found

    def best(self, metric: str) -> int:
        """The iteration of the first best evaluation so far."""
        return best_of(self.evaluations(), metric)

    def evaluated_questions(
        self, iteration: int, model: type[stored.Stored] = stored.Stored
    ) -> Iterator[dict[str, Any]]:
        """What was selected and answered for each question; a UserError where it is not `model`."""
        path = self.path / "evaluation" / f"iteration-{iteration:04d}.jsonl"
        yield from stored.read_lines(path, model)

    # --- metrics and rollouts -------------------------------------------------------------------

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """One JSON line; a number that is not finite becomes null, as JSON has no such numbers."""
        path = self.path / "metrics.jsonl"
        with durable.writing(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(_plain(row)) + "\n")
        self._tell(row)

    def _tell(self, row: Mapping[str, Any]) -> None:
        for follower in self.followers:
            follower(_plain(row))

    def flush(self) -> None:
        """Wait until the metrics are on the disk."""
        path = self.path / "metrics.jsonl"
        if path.exists():
            with durable.writing(path):
                durable.flush(path)

    def steps(self) -> list[dict[str, Any]]:
        """The rows of optimiser steps."""
        return [row for row in self.rows() if "step" in row]

    def metrics_of(self, iteration: int) -> dict[str, Any]:
        """The row of an iteration as a whole; empty where it has none."""
        return next((row for row in self.iterations() if row["iteration"] == iteration), {})

    def iterations(self) -> list[dict[str, Any]]:
        """The rows of iterations as a whole."""
        return [row for row in self.rows() if "step" not in row]

    def history(self) -> list[dict[str, Any]]:
        """All that followers would have been told so far."""
        first = [_warm_start(summary) for summary in self.evaluations()[:1]]
        return [*first, *self.rows()]

    def rows(self) -> list[dict[str, Any]]:
        """All rows of metrics.jsonl, in order."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return []
        return [*stored.read_lines(path, stored.Iteration, torn=True)]  # a killed run's last row

    def drop_after(self, iteration: int, step: int = 0) -> None:
        """Forget what an interrupted iteration left behind, so that no row is there twice, and what
        was half-written; rows up to `step` of the run stay, and so do its saves, which are
        `dro_rl.progress`'s."""
        metrics = self.path / "metrics.jsonl"
        if metrics.exists():
            lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True)
            whole = [line for line in lines if line.endswith("\n")]
            kept = [
                line
                for line, row in zip(whole, self.rows(), strict=True)
                if row["iteration"] <= iteration or row.get("step", math.inf) <= step
            ]
            write_text(metrics, "".join(kept))
        for folder in (self.path, self.path / "evaluation", self.path / "rollouts"):
            for path in folder.glob("*.partial"):  # of a process that was killed as it wrote
                with durable.writing(path):
                    durable.remove(path)
        for folder in ("evaluation", "rollouts", "checkpoints"):
            for path in (self.path / folder).glob("iteration-*"):
                if int(path.name[10:14]) > iteration and "-part-" not in path.name:
                    with durable.writing(path):
                        durable.remove(path)

    def write_rollouts(
        self,
        iteration: int,
        scored: Sequence[ScoredRollout],
        weighted: Sequence[WeightedRollout],
    ) -> None:
        """One Parquet row a selection: what was drawn, its reward and its weights.

        The questions, with the candidates that they were shown, stand beside it, a row each.
        """
        path = self.path / "rollouts" / f"iteration-{iteration:04d}"
        shown = [s.rollout.example for s in scored]
        drawn.write_questions(f"{path}-questions.parquet", shown)
        drawn.write_selections(f"{path}.parquet", iteration, scored, weighted)

    def write_held_out(self, examples: Sequence[Example]) -> None:
        """The questions of all evaluations, with their candidates: evaluation/questions.parquet."""
        drawn.write_questions(self.path / "evaluation" / "questions.parquet", examples)

    @property
    def knows_candidates(self) -> bool:
        """Whether it has what `write_held_out` writes; runs of earlier versions lack it."""
        return (self.path / "evaluation" / "questions.parquet").is_file()

    def held_out(self) -> Iterator[dict[str, Any]]:
        """What `write_held_out` wrote."""
        path = self.path / "evaluation" / "questions.parquet"
        yield from stored.read_parquet(path, stored.Question)

    def rollouts(self, iteration: int) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
        """An iteration's questions with their candidates, and the selections of each."""
        path = self.path / "rollouts" / f"iteration-{iteration:04d}"
        yield from drawn.groups(f"{path}-questions.parquet", f"{path}.parquet")

    def selector_weights(self, iteration: int) -> list[float]:
        """The selector's coefficients of an iteration's selections."""
        path = self.path / "rollouts" / f"iteration-{iteration:04d}.parquet"
        return [row["selector_weight"] for row in stored.read_parquet(path, stored.Weight)]


def _warm_start(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Its evaluation as a row of metrics: step 0."""
    figures = {f"evaluation/{k}": v for k, v in summary.items() if k != "iteration"}
    return {"iteration": 0, "step": 0, **figures}


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
