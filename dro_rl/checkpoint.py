"""Checkpoints: both policies and what resuming needs, written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from dro_rl.cluster import Team
from dro_rl.errors import UserError
from dro_rl.recipe import PolicyName
from dro_rl.tracking.run_directory import RunDirectory, write_text


@dataclass(slots=True)
class TrainerState:
    """Where the loop stands. The policies' and optimisers' states lie beside it.

    `best` is the best value of `training.early_stop.metric` so far, of iteration `best_iteration`.
    """

    iteration: int = 0
    best: float | None = None
    best_iteration: int = 0


def folder_of(run: RunDirectory, iteration: int) -> Path:
    """Where an iteration's checkpoint lies."""
    return run.path / "checkpoints" / f"iteration-{iteration:04d}"


def save(run: RunDirectory, state: TrainerState, learners: Mapping[PolicyName, Team]) -> Path:
    """Write iteration `state.iteration`'s checkpoint: to a folder aside, then renamed."""
    final = folder_of(run, state.iteration)
    partial = final.with_name(final.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for wait in [t.submit("save", partial / name) for name, t in learners.items()]:
        wait()
    write_text(partial / "trainer_state.json", json.dumps(asdict(state)) + "\n")
    os.replace(partial, final)
    return final


def latest(run: RunDirectory) -> TrainerState | None:
    """The state of the last whole checkpoint; None before the first."""
    folders = sorted((run.path / "checkpoints").glob("iteration-????"))
    if not folders:
        return None
    path = folders[-1] / "trainer_state.json"
    try:
        return TrainerState(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}): remove {folders[-1]} to resume from the "
            "checkpoint before it"
        ) from error


def policy_folder(run: RunDirectory, iteration: int, policy: PolicyName, initial: str) -> str:
    """Where a policy's weights of an iteration are: a frozen one's are those it started with."""
    folder = folder_of(run, iteration) / policy
    return str(folder) if folder.is_dir() else initial
