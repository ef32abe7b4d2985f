"""Checkpoints: both policies and what resuming needs, written whole or not at all.

Where a run stands is the name of its last checkpoint: everything else that the loop knows follows
from the recipe, the iteration's number and the evaluations.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dro_rl.cluster import Team
from dro_rl.errors import UserError
from dro_rl.recipe import POLICIES, PolicyName, Recipe
from dro_rl.tracking.run_directory import RunDirectory

_STATES_KEPT = 2  # optimiser states are several times the weights, and only the last is resumed
_KNOWN = "known.json"  # what an unchanged generator made of selections


def folder_of(run: RunDirectory, iteration: int) -> Path:
    """Where an iteration's checkpoint lies."""
    return run.path / "checkpoints" / f"iteration-{iteration:04d}"


def write(
    run: RunDirectory,
    iteration: int,
    learners: Mapping[PolicyName, Team],
    known: Mapping[str, Any],
) -> None:
    """Write an iteration's checkpoint to a folder aside, which counts once it is published.

    Args:
        known: what `Teams.known` gave.
    Raises:
        UserError: the learners wrote to another file system than this process reads.
    """
    partial = _partial(run, iteration)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    (partial / _KNOWN).write_text(json.dumps(known), encoding="utf-8")
    for wait in [t.submit("save", partial / name) for name, t in learners.items()]:
        wait()
    for policy in learners:
        if not ((partial / policy / "config.json").is_file() and _state(partial, policy).is_file()):
            raise UserError(
                f"{partial}: the {policy}'s learner wrote its checkpoint somewhere else: "
                "tracking.run_dir must be on a file system that all machines share"
            )


def publish(run: RunDirectory, iteration: int) -> None:
    """Make what was written the run's last checkpoint."""
    os.replace(_partial(run, iteration), folder_of(run, iteration))
    if iteration > _STATES_KEPT:
        old = folder_of(run, iteration - _STATES_KEPT)
        for path in (old / _KNOWN, *(_state(old, policy) for policy in POLICIES)):
            path.unlink(missing_ok=True)


def known(run: RunDirectory, iteration: int) -> dict[str, Any]:
    """What `write` was given."""
    path = folder_of(run, iteration) / _KNOWN
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def latest(run: RunDirectory) -> int:
    """The iteration of the last whole checkpoint; 0 before the first."""
    folders = sorted((run.path / "checkpoints").glob("iteration-????"))
    return int(folders[-1].name.removeprefix("iteration-")) if folders else 0


def policy_folder(run: RunDirectory, iteration: int, policy: PolicyName, initial: str) -> str:
    """Where a policy's weights of an iteration are: a frozen one's are those it started with."""
    folder = folder_of(run, iteration) / policy
    return str(folder) if folder.is_dir() else initial


def policies_of(
    run: RunDirectory, recipe: Recipe, iteration: int | None
) -> tuple[int, dict[PolicyName, str]]:
    """An iteration (by default the last whole one; 0 is the warm start) and its policies.

    Raises:
        UserError: the run has no such checkpoint.
    """
    last = latest(run)
    at = iteration if iteration is not None else last
    if at and not folder_of(run, at).is_dir():
        raise UserError(f"{run.path}: no checkpoint of iteration {at}; the last is {last}")
    return at, {
        "selector": policy_folder(run, at, "selector", recipe.selector.model),
        "generator": policy_folder(run, at, "generator", recipe.generator.model),
    }


def _partial(run: RunDirectory, iteration: int) -> Path:
    final = folder_of(run, iteration)
    return final.with_name(final.name + ".partial")


def _state(folder: Path, policy: PolicyName) -> Path:
    return folder / f"{policy}.learner.pt"
