"""Checkpoints of a learner that is none."""

from __future__ import annotations

from pathlib import Path

from dro_rl import checkpoint
from dro_rl.tracking.run_directory import RunDirectory


class Saver:
    """A learner as far as checkpoints know one; with several ranks its state is a folder."""

    def __init__(self, shards: bool = False) -> None:
        self.shards = shards

    def save(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        self.save_state(folder)

    def save_state(self, folder: Path) -> None:
        state = folder.with_name(f"{folder.name}.learner")
        if self.shards:
            state.mkdir()
            state /= "0"
        state.write_bytes(b"moments")


def save(run: RunDirectory, iteration: int, learners, known=None) -> Path:
    checkpoint.write(run, iteration, learners, known or {})
    checkpoint.publish(run, iteration)
    run.write_evaluation(f"iteration-{iteration:04d}", {"iteration": iteration, "em": 0.1}, [])
    return checkpoint.folder_of(run, iteration)
