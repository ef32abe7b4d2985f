"""`dro-rl profile`: the operators that the stages of an iteration spend their time in.

An iteration of a run, with one batch of questions and a few optimiser steps on it, in this process
and under torch.profiler. One of the same size before it is not profiled: a first call pays for
what later ones find ready.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

from dro_rl.cluster.processes import open_cluster
from dro_rl.errors import UserError
from dro_rl.progress import Progress
from dro_rl.recipe import Recipe
from dro_rl.roles import process_count, start_teams
from dro_rl.start import prepare
from dro_rl.tracking.console import Advance, Console
from dro_rl.tracking.run_directory import RunDirectory
from dro_rl.trainer import Trainer

OPERATORS = 12  # of a stage that are shown


@dataclass(frozen=True, slots=True)
class Operator:
    """Seconds in an operator itself, without those that it calls, or in a GPU's kernel; the share
    of the stage's; how often it was called."""

    name: str
    seconds: float
    share: float
    calls: int


def profile(recipe: Recipe, steps: int, output: Path | None, console: Console) -> Path:
    """Show the top operators of each stage, and write a Chrome trace of each.

    Args:
        recipe: its cluster.mode must be local.
        steps: optimiser steps of each policy that learns.
        output: folder of the traces; None is NAME-profile beside the recipe's run directory NAME.
    Returns:
        the folder.
    Raises:
        UserError: bad input, or a folder that is not empty or cannot be made; nothing has been
            written then.
    """
    if recipe.algorithm.kind == "trl_grpo":
        raise UserError(
            "algorithm.kind: trl_grpo is driven by TRL, which this cannot profile: give another, "
            "such as grpo"
        )
    run_dir = Path(recipe.tracking.run_dir)
    folder = output or run_dir.with_name(f"{run_dir.name}-profile")
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UserError(f"{folder}: is there already: remove it, or give another --output DIR")
    with tempfile.TemporaryDirectory() as scratch:
        short = _shortened(recipe, steps, scratch)
        start = prepare(short, console, None)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{folder}: cannot be made ({error.strerror}): give another --output DIR"
            ) from error
        with open_cluster(short.cluster, process_count(short, learners=True)) as cluster:
            teams = start_teams(short, cluster, start.models, console, 2 * steps)
            run = RunDirectory.create(short)
            trainer = ProfiledTrainer(short, run, start.questions, teams, start.reward, console)
            found = trainer.profile()
    for stage, profiled in found.items():
        seconds, rows = top_operators(profiled)
        took = trainer.at.timeline.stages[stage].seconds
        where = "kernels on the GPU" if torch.cuda.is_available() else "operators on the CPU"
        console.operators(f"{stage}: {seconds:.2f} of {took:.2f} s in {where}", rows)
        profiled.export_chrome_trace(str(folder / f"{stage}.json.gz"))
    return folder


def _shortened(recipe: Recipe, steps: int, run_dir: str) -> Recipe:
    """Two iterations in which every policy takes `steps` steps, in the recipe's own schedule."""
    settings = recipe.resolved()
    settings["tracking"] |= {"run_dir": run_dir, "trackers": []}
    settings["rollout"]["overlap"] = 0  # the second iteration samples for itself
    settings["training"] |= {
        "iterations": 2,
        "questions_per_iteration": recipe.training.batch_size
        * math.ceil(steps / recipe.training.epochs),
    }
    return Recipe.model_validate(settings)


class ProfiledTrainer(Trainer):
    """A run's loop, its second iteration under torch.profiler."""

    def profile(self) -> dict[str, Any]:
        """The profiler of each stage, in the order that they ran."""
        self.profiled: dict[str, Any] = {}
        for iteration in (1, 2):
            self.at = Progress(iteration)
            self._iterate()
        return self.profiled

    @contextmanager
    def _stage(self, name: str, total: int) -> Iterator[Advance]:
        if self.at.iteration == 1:
            with super()._stage(name, total) as advance:
                yield advance
            return
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        with (
            torch.profiler.profile(activities=activities) as self.profiled[name],
            super()._stage(name, total) as advance,
        ):
            yield advance


def top_operators(profiled: Any) -> tuple[float, list[Operator]]:
    """Seconds in all operators, on a GPU in its kernels, and those that take most of them."""
    on_gpu = torch.cuda.is_available()
    kind = DeviceType.CUDA if on_gpu else DeviceType.CPU
    micros = {
        e: e.self_device_time_total if on_gpu else e.self_cpu_time_total
        for e in profiled.key_averages()
        if e.device_type == kind and not e.is_user_annotation
    }
    whole = sum(micros.values())
    longest = sorted(micros, key=lambda e: -micros[e])[:OPERATORS]
    rows = [Operator(e.key, micros[e] / 1e6, micros[e] / whole, e.count) for e in longest]
    return whole / 1e6, rows
