"""What a run saves as it goes on, and the way back to it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from dro_rl import checkpoint, progress
from dro_rl.progress import Progress
from dro_rl.recipe import Recipe
from dro_rl.records import Example
from dro_rl.rollout_files import read_rollouts, write_rollouts
from dro_rl.teams import Teams
from dro_rl.tracking.console import Console
from dro_rl.tracking.run_directory import RunDirectory


class Saving:
    """Saves of one run: a checkpoint an iteration, and before it what the iteration has so far."""

    def __init__(self, recipe: Recipe, run: RunDirectory, teams: Teams, console: Console) -> None:
        self.recipe, self.run, self.teams, self.console = recipe, run, teams, console
        self.last = time.monotonic()

    # --- in an iteration ------------------------------------------------------------------------

    @property
    def due(self) -> bool:
        """Whether the last save is so long ago that a step of the M-step is to be saved."""
        return time.monotonic() - self.last >= self.recipe.training.checkpoint_seconds

    def save(self, at: Progress) -> None:
        """What the iteration has so far, in place of what was saved before."""
        progress.save(self.run, at, self.teams.known(), self.teams.learners)
        self.last = time.monotonic()

    # --- at its end -----------------------------------------------------------------------------

    def write(self, at: Progress) -> None:
        """Its checkpoint, which counts once it is published."""

        def ahead(folder: Path) -> None:
            if at.ahead:
                write_rollouts(folder / checkpoint.AHEAD, at.ahead)

        known = self.teams.known()
        checkpoint.write(self.run, at.iteration, self.teams.learners, known, ahead)

    def publish(self, at: Progress) -> None:
        """Make the checkpoint count; what it replaces goes."""
        self.run.flush()
        checkpoint.publish(self.run, at.iteration)
        progress.forget(self.run)
        checkpoint.prune(self.run, self.recipe)

    # --- the way back ---------------------------------------------------------------------------

    def restore(
        self, done: int, examples: Sequence[Example], steps: int, probe: Example
    ) -> Progress:
        """See `Trainer.restore`.

        Args:
            done: iterations that have their checkpoint.
            examples: of the next iteration.
            steps: optimiser steps of `done` iterations.
            probe: for the check that engines took the learners' weights.
        """
        last = checkpoint.folder_of(self.run, done)
        at = progress.load(self.run, done + 1, examples, self.console.say)
        at = at or self._next(done, examples)
        progress.forget(self.run, but=at.folder)
        self.run.drop_after(done, steps + at.step)
        if done:
            self._restore_learners(last)
        # Engines sample with the weights that an iteration starts with, and count from version 0
        # whatever they were started with.
        self.teams.synchronise(done, probe)
        if at.folder and at.step:
            self._restore_learners(at.folder)
        at.restore_rng()
        self.teams.restore_known(checkpoint.known(at.folder or last))
        self.teams.forget_usage()
        if done or at.folder:
            self.console.say(f"resumed {self.run.path} {at.in_words()}")
        return at

    def _next(self, done: int, examples: Sequence[Example]) -> Progress:
        """The iteration after a checkpoint, as it begins."""
        ahead = checkpoint.folder_of(self.run, done) / checkpoint.AHEAD
        rollouts = read_rollouts(ahead, examples) if ahead.is_file() else []
        mean = self.run.metrics_of(done).get("reward/running_mean")
        return Progress(done + 1, rollouts, running_mean=mean)

    def _restore_learners(self, folder: Path) -> None:
        for wait in [t.submit("restore", folder / p) for p, t in self.teams.learners.items()]:
            wait()
