"""Tiny runs of the demo in one process, through the command line."""

from __future__ import annotations

from pathlib import Path

from tests.commands import Result, dro_rl

LOCAL = ("cluster.mode=local", "rollout.engine=transformers")
TINY = (
    "data.train_questions=64",
    "data.evaluation_questions=8",
    "training.questions_per_iteration=16",
    "training.batch_size=8",
    "training.tokens_per_microbatch=600",
    "training.schedule=constant",
    "training.warmup_steps=3",
    "algorithm.samples=4",
    "evaluation.samples=4",
)


def words(run: Path, *overrides: str) -> tuple[str, ...]:
    """The command's, for `tests.commands.start`."""
    place = f"tracking.run_dir={run}"
    return ("train", "recipes/demo.yaml", *LOCAL, *TINY, *overrides, place)


def train(run: Path, *overrides: str) -> Result:
    """Run it to its end."""
    return dro_rl(*words(run, *overrides))


def resume(run: Path, *overrides: str) -> Result:
    """Run on from where it stands."""
    return dro_rl("train", "--resume", run, *overrides)
