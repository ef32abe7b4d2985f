"""A run goes on after a learner was lost, or its ranks ran out of memory: fresh learners, and the
state of the last checkpoint."""

from __future__ import annotations

from collections.abc import Callable

from dro_rl import checkpoint
from dro_rl.cluster.ray_results import WorkerLost
from dro_rl.errors import UserError
from dro_rl.passes import PassTooLarge
from dro_rl.teams import Teams
from dro_rl.tracking.console import Console
from dro_rl.tracking.run_directory import RunDirectory


def keep_going(
    attempt: Callable[[int], object], done: int, teams: Teams, run: RunDirectory, console: Console
) -> None:
    """Attempt until it succeeds, or has lost a learner more often than `cluster.max_failures`.

    All learners start afresh for the next attempt, since those that are left have gone on since the
    checkpoint. Engines and the reward service stay. Ranks that ran out of memory take less at once
    from then on, down to single questions.

    Args:
        attempt: goes on after the iteration that it is given.
        done: the iteration to go on after first; then it is that of the last checkpoint.
    Raises:
        UserError: a learner was lost once too often.
    """
    most, failures, again = teams.recipe.cluster.max_failures, 0, False
    tokens: int | None = None
    while True:
        try:
            if again:
                teams.restart_learners(tokens)
                done = checkpoint.latest_good(run, console.say)
            attempt(done)
            return
        except PassTooLarge as large:
            tokens = large.tokens
            console.say(
                f"{large}: learners start again from the last checkpoint, with at most {tokens}; "
                "set training.tokens_per_microbatch to that"
            )
        except WorkerLost as lost:
            failures += 1
            if failures > most:
                raise UserError(
                    f"{lost}. That was loss {failures} of this run, and cluster.max_failures is "
                    f"{most}: see the workers' logs (`ray logs`), then go on from the last "
                    f"checkpoint with dro-rl train --resume {run.path}"
                ) from lost
            console.say(f"{lost}: learners start again from the last checkpoint, {failures}/{most}")
        again = True
