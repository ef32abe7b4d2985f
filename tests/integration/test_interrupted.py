"""Runs that die right after a save, or find the disk full, and are resumed: they end as one that
was never interrupted, with the same metrics, rollouts, policies and evaluations, bit by bit.
"""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from dro_rl import checkpoint, durable, progress
from dro_rl.errors import UserError
from dro_rl.recipe import Recipe
from dro_rl.tracking.console import Console
from dro_rl.tracking.run_directory import RunDirectory
from dro_rl.trainer import train
from tests.outcomes import assert_equal
from tests.tiny import make_example, make_recipe

pytestmark = pytest.mark.integration

LORA = {"lora": {"rank": 2, "dropout": 0.3}}
# the fewest saves of each, and its settings
KINDS: dict[str, tuple[int, dict[str, Any]]] = {
    "fresh weights": (7, {}),
    "frozen weights, two epochs, LoRA with dropout": (
        7,
        {
            "training": {"weights": "frozen", "epochs": 2},
            "selector": LORA,
            "generator": LORA,
        },
    ),
    "PPO with its value head, sampled ahead": (
        7,
        {
            "algorithm": {"kind": "ppo"},
            "rollout": {"overlap": 1},
        },
    ),
    "a running baseline, a reward of answers, a frozen generator, sampled ahead": (
        7,
        {
            "algorithm": {"kind": "reinforce", "train": ["selector"]},
            "reward": {"use": "rewards/f1.py"},
            "rollout": {"overlap": 1},
        },
    ),
    "every other iteration evaluated, the best kept, LoRA with dropout": (
        6,
        {
            "evaluation": {"every": 2},
            "training": {"iterations": 3, "checkpoint_seconds": 600},
            "tracking": {"keep_last": 1, "keep_best": "bound"},
            "selector": LORA,
        },
    ),
}


class Killed(BaseException):
    """As SIGKILL, nothing of the project catches it."""


def recipe(folder: Path, name: str, **sections: dict[str, Any]) -> Recipe:
    data = folder / "questions.jsonl"
    rows = [make_example(i) for i in range(8)]
    data.write_text(
        "".join(
            json.dumps(
                {
                    "id": e.id,
                    "question": e.question,
                    "answers": e.answers,
                    "documents": [
                        {"title": d.title, "text": d.text, "is_gold": d.is_gold}
                        for d in e.candidates
                    ],
                }
            )
            + "\n"
            for e in rows
        )
    )
    settings: dict[str, dict[str, Any]] = {
        "data": {"path": str(data), "evaluation_questions": 2, "allow_overlap": True},
        "training": {
            "iterations": 2,
            "questions_per_iteration": 4,
            "batch_size": 2,
            "checkpoint_seconds": 0,
        },
        "evaluation": {"samples": 2},
        "tracking": {"run_dir": str(folder / name)},
    }
    for section, changes in sections.items():
        settings[section] = {**settings.get(section, {}), **changes}
    return make_recipe(folder, **settings)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_dies_after_each_save_ends_as_if_it_had_not(kind, tmp_path, monkeypatch):
    fewest, settings = KINDS[kind]
    straight = recipe(tmp_path, "straight", **settings)
    saves: list[str] = []
    publish = durable.publish

    def counted(folder: Path) -> None:
        publish(folder)
        saves.append(folder.name)

    monkeypatch.setattr(durable, "publish", counted)
    train(straight, Console())
    assert len(saves) == len(set(saves)) >= fewest

    def killed(folder: Path) -> None:
        publish(folder)
        raise Killed

    again = recipe(tmp_path, "again", **settings)
    run, died = RunDirectory.of(again), 0
    monkeypatch.setattr(durable, "publish", killed)
    while not (run.begun and checkpoint.is_finished(run, again)):
        with pytest.raises(Killed):
            train(again, Console(), run if run.begun else None)
        died += 1
    monkeypatch.setattr(durable, "publish", publish)
    progress.forget(run)  # as a command does that finds it finished
    checkpoint.prune(run, again)
    assert died == len(saves)
    assert_equal(run.path, RunDirectory.of(straight).path)


def test_a_disk_that_is_full_for_a_while(tmp_path, monkeypatch):
    """What is good is named, nothing half-written is left, and the run goes on from it."""
    straight, again = (recipe(tmp_path, name) for name in ("straight", "again"))
    train(straight, Console())
    run, write = RunDirectory.of(again), checkpoint.write_learners

    def full(folder: Path, learners: Any, method: Any) -> None:
        write(folder, learners, method)
        if method == "save":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "write_learners", full)
    with pytest.raises(UserError) as told:
        train(again, Console())
    folder = run.path / "checkpoints" / "iteration-0001"
    assert str(told.value) == (
        f"{folder}: cannot be written (No space left on device). What iteration 1 had so far is "
        f"safe; go on with: dro-rl train --resume {run.path}"
    )
    assert [p.name for p in (run.path / "checkpoints").iterdir()] == ["iteration-0001-part-0003"]
    monkeypatch.setattr(checkpoint, "write_learners", write)
    train(again, Console(), run)
    assert_equal(run.path, RunDirectory.of(straight).path)
