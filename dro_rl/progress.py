"""What a started iteration has so far, saved as it comes: selections, their rewards and weights,
and now and then the learners in the middle of the M-step.

A save is a folder checkpoints/iteration-NNNN-part-NNNN with all of it; the newest counts, and the
one before it is removed. Numbers are kept to the last bit, in which they might differ if they were
found out again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from dro_rl import checkpoint, durable
from dro_rl.cluster.team import Team
from dro_rl.recipe import PolicyName
from dro_rl.records import Example, Rollout, ScoredRollout, WeightedRollout
from dro_rl.rollout.engine import Usage
from dro_rl.rollout_files import read_rollouts, read_weighted, write_rollouts, write_weighted
from dro_rl.timeline import Timeline
from dro_rl.tracking.run_directory import RunDirectory

_STATE, _ROLLOUTS, _WEIGHTED = "state.json", "rollouts.parquet", "weighted.parquet"


@dataclass
class Progress:
    """An iteration at work. `scored` and `weighted` have the first of `rollouts`, or all; `step`
    counts the optimiser steps taken; `ahead` are the next iteration's rollouts."""

    iteration: int
    rollouts: list[Rollout] = field(default_factory=list)
    scored: list[ScoredRollout] = field(default_factory=list)
    weighted: list[WeightedRollout] = field(default_factory=list)
    step: int = 0
    ahead: list[Rollout] = field(default_factory=list)
    running_mean: float | None = None  # of rewards, for algorithm.kind: reinforce
    sampled: Usage = field(default_factory=Usage)  # by this iteration's own sampling
    timeline: Timeline = field(default_factory=Timeline)
    folder: Path | None = None  # of the last save
    rng: bytes | None = None  # torch's state at the last save

    def in_words(self) -> str:
        """Where it stands, for messages."""
        before = f"after iteration {self.iteration - 1}" if self.iteration > 1 else ""
        if self.step:
            has = f"after step {self.step} of iteration {self.iteration}"
        elif self.rollouts:
            what = "weights" if self.weighted else "selections"
            has = f"with the {what} of iteration {self.iteration}"
        else:
            has = ""
        return ", ".join(filter(None, (before, has)))

    def next(self) -> Progress:
        """The iteration after this one, as it begins."""
        return Progress(self.iteration + 1, rollouts=self.ahead, running_mean=self.running_mean)

    def restore_rng(self) -> None:
        """In one process (cluster.mode: local) engines and learners draw from one generator, which
        sampling may leave in another state than it found it."""
        if self.rng is not None:
            torch.set_rng_state(torch.frombuffer(bytearray(self.rng), dtype=torch.uint8))


def save(
    run: RunDirectory,
    at: Progress,
    known: Mapping[str, Any],
    learners: Mapping[PolicyName, Team],
) -> None:
    """Save what there is, in place of what was saved before.

    Args:
        known: what `Teams.known` gave.
        learners: asked for their states where the M-step has begun.
    Raises:
        CannotWrite: the disk does not take it; the save before it still counts.
    """
    number = _number(at.folder) + 1 if at.folder else 1
    final = run.path / "checkpoints" / f"iteration-{at.iteration:04d}-part-{number:04d}"
    state = {
        "step": at.step,
        "running_mean": at.running_mean,
        "sampled": asdict(at.sampled),
        "timeline": at.timeline.state(),
        "rng": torch.get_rng_state().numpy().tobytes().hex(),
    }
    with durable.aside(final) as folder:
        (folder / _STATE).write_text(json.dumps(state), encoding="utf-8")
        (folder / checkpoint.KNOWN).write_text(json.dumps(known), encoding="utf-8")
        write_rollouts(folder / _ROLLOUTS, at.rollouts)
        write_weighted(folder / _WEIGHTED, at.scored, at.weighted)
        if at.step:
            checkpoint.write_learners(folder, learners, "save_state")
    run.flush()  # rows of steps that a save has must not be lost behind it
    durable.publish(final)
    before, at.folder = at.folder, final
    if before:
        durable.remove(before)


def load(
    run: RunDirectory, iteration: int, examples: Sequence[Example], say: Callable[[str], object]
) -> Progress | None:
    """The last save of an iteration that is what was written; None where there is none.

    Args:
        examples: of the iteration.
    Raises:
        UserError: it was made of other examples.
    """
    for folder in reversed(saves(run, iteration)):
        damage = durable.damage(folder)
        if damage is not None:
            say(f"{folder}: {damage}: what iteration {iteration} had then is made again")
            continue
        state = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        rollouts = read_rollouts(folder / _ROLLOUTS, examples)
        scored, weighted = read_weighted(folder / _WEIGHTED, rollouts)
        return Progress(
            iteration,
            rollouts,
            scored,
            weighted,
            step=state["step"],
            running_mean=state["running_mean"],
            sampled=Usage(**state["sampled"]),
            timeline=Timeline.resumed(state["timeline"]),
            folder=folder,
            rng=bytes.fromhex(state["rng"]),
        )
    return None


def forget(run: RunDirectory, but: Path | None = None) -> None:
    """Remove all saves but one, and what was left half-written."""
    folders = run.path / "checkpoints"
    with durable.writing(folders):
        for path in (*folders.glob("iteration-????-part-*[0-9]"), *folders.glob("*.partial")):
            if path != but:
                durable.remove(path)


def saves(run: RunDirectory, iteration: int) -> list[Path]:
    """Of a started iteration, the newest last."""
    parts = (run.path / "checkpoints").glob(f"iteration-{iteration:04d}-part-*[0-9]")
    return sorted(parts, key=_number)


def _number(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])
