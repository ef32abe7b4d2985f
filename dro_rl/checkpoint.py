"""Checkpoints: both policies and what resuming needs, written whole or not at all.

Where a run stands is the name of its last checkpoint: everything else that the loop knows follows
from the recipe, the iteration's number and the evaluations. What an iteration has before it comes
to its checkpoint is `dro_rl.progress`'s.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from dro_rl import durable
from dro_rl.cluster.team import Team
from dro_rl.errors import UserError
from dro_rl.recipe import POLICIES, PolicyName, Recipe
from dro_rl.sections.training import best_of
from dro_rl.tracking.run_directory import RunDirectory

_STATES_KEPT = 2  # optimiser states are several times the weights, and only the last is resumed
KNOWN = "known.json"  # what an unchanged generator made of selections
AHEAD = "ahead.parquet"  # the next iteration's rollouts, where they are sampled ahead


def folder_of(run: RunDirectory, iteration: int) -> Path:
    """Where an iteration's checkpoint lies."""
    return run.path / "checkpoints" / f"iteration-{iteration:04d}"


# --- writing --------------------------------------------------------------------------------------


def write(
    run: RunDirectory,
    iteration: int,
    learners: Mapping[PolicyName, Team],
    known: Mapping[str, Any],
    also: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Write an iteration's checkpoint to a folder aside, which counts once it is published.

    Args:
        known: what `Teams.known` gave.
        also: writes what else belongs into the folder.
    Raises:
        CannotWrite: the disk does not take it; nothing is left of it then.
        UserError: the learners wrote to another file system than this process reads.
    """
    with durable.aside(folder_of(run, iteration)) as folder:
        (folder / KNOWN).write_text(json.dumps(known), encoding="utf-8")
        also(folder)
        write_learners(folder, learners, "save")


def write_learners(
    folder: Path, learners: Mapping[PolicyName, Team], method: Literal["save", "save_state"]
) -> None:
    """Have every learner write its policy and its state into a folder, or its state alone.

    Raises:
        UserError: they wrote to another file system than this process reads.
    """
    for wait in [team.submit(method, folder / policy) for policy, team in learners.items()]:
        wait()
    for policy in learners:
        written = ("config.json", "modules.json")  # the latter of an encoder
        has_policy = any((folder / policy / name).is_file() for name in written)
        has_policy = has_policy or method == "save_state"
        if not (has_policy and _states(folder, policy)):
            raise UserError(
                f"{folder}: the {policy}'s learner wrote its checkpoint somewhere else: "
                "tracking.run_dir must be on a file system that all machines share"
            )


def publish(run: RunDirectory, iteration: int) -> None:
    """Make what was written the run's last checkpoint."""
    durable.publish(folder_of(run, iteration))


def prune(run: RunDirectory, recipe: Recipe) -> None:
    """Remove what `tracking.keep_last` does not keep, and optimiser states that nobody resumes.

    The policies of the best evaluation, by `tracking.keep_best` or the metric that stops the run,
    are kept in any case: of those that the recipe asks for, and of all, which `export` goes by.
    """
    keep, here = recipe.tracking.keep_last, kept(run)
    best: set[int] = set()
    for metric in recipe.watched.values():
        best |= {run.best(metric), best_of(recipe.counting(run.evaluations()), metric)}
    whole = here[-(keep or _STATES_KEPT) :]
    with durable.writing(run.path / "checkpoints"):
        for iteration in here[: -len(whole)]:
            folder = folder_of(run, iteration)
            if keep and iteration not in best:
                durable.remove(folder)
                continue
            states = [path for policy in POLICIES for path in _states(folder, policy)]
            for path in (folder / KNOWN, folder / AHEAD, *states):
                durable.remove(path)


# --- reading --------------------------------------------------------------------------------------


def kept(run: RunDirectory) -> list[int]:
    """The iterations that have a checkpoint, in order."""
    folders = sorted((run.path / "checkpoints").glob("iteration-????"))
    return [int(folder.name.removeprefix("iteration-")) for folder in folders]


def latest(run: RunDirectory) -> int:
    """The iteration of the last checkpoint; 0 before the first."""
    return max(kept(run), default=0)


def latest_good(run: RunDirectory, say: Callable[[str], object]) -> int:
    """The last iteration whose checkpoint is what was written; 0 before the first.

    Raises:
        UserError: there are checkpoints, and none to resume from.
    """
    told: list[str] = []
    for iteration in reversed(kept(run)):
        damage = durable.damage(folder_of(run, iteration))
        if damage is None:
            for line in told:
                say(f"{line}: going back to iteration {iteration}")
            return iteration
        told.append(f"{folder_of(run, iteration)}: {damage}")
    if told:
        raise UserError(
            "no checkpoint to resume from: " + "; ".join(told) + ". Restore one from a copy, or "
            "start a new run in another place (tracking.run_dir=...)"
        )
    return 0


def known(folder: Path) -> dict[str, Any]:
    """What `Teams.known` gave when a folder was written."""
    path = folder / KNOWN
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def policy_folder(run: RunDirectory, iteration: int, policy: PolicyName, initial: str) -> str:
    """Where a policy's weights of an iteration are: a frozen one's are those it started with."""
    folder = folder_of(run, iteration) / policy
    return str(folder) if folder.is_dir() else initial


def is_finished(run: RunDirectory, recipe: Recipe) -> bool:
    """Whether all iterations have been done, or it stopped early."""
    done, early = latest(run), recipe.training.early_stop
    if done >= recipe.training.iterations:
        return True
    if early is None or done == 0:
        return False
    found = recipe.counting(run.evaluations())
    return early.stops([e for e in found if e["iteration"] <= done])


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


def how_to_evaluate(run: RunDirectory) -> str:
    """The command for the figures of a run whose last iteration has none, as one that was given
    fewer iterations than it had; empty where it has them."""
    last = latest(run)
    if any(summary["iteration"] == last for summary in run.evaluations()):
        return ""
    command = f"dro-rl evaluate {shlex.quote(str(run.path))}"
    return f"; iteration {last} has not been evaluated: {command}"


def how_to_go_on(run: RunDirectory) -> str:
    """Where a run stands, and the command that goes on from there."""
    if not run.begun:
        return "Nothing has been written"
    last = latest(run)
    parts = sorted((run.path / "checkpoints").glob(f"iteration-{last + 1:04d}-part-*[0-9]"))
    safe = [f"iteration {last}"] if last else []
    safe += [f"what iteration {last + 1} had so far"] if parts else []
    told = f"{' and '.join(safe)} {'are' if len(safe) > 1 else 'is'} safe" if safe else ""
    told = told or "nothing but its beginning has been saved"
    command = f"dro-rl train --resume {shlex.quote(str(run.path))}"
    return f"{told[0].upper()}{told[1:]}; go on with: {command}"


def _states(folder: Path, policy: PolicyName) -> list[Path]:
    """What `Learner.save_state` wrote: files, or folders of shards."""
    return sorted(folder.glob(f"{policy}.learner*"))
