"""Runs that several files of tests read."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

import pytest

from tests.commands import dro_rl
from tests.local_runs import train

SMALL = (
    "training.iterations=2",
    "training.questions_per_iteration=64",
    "training.batch_size=32",
    "data.evaluation_questions=40",
)


@pytest.fixture(scope="session")
def straight(tmp_path_factory) -> Path:
    """Three iterations without interruption; to be copied before anything is changed in it."""
    run = tmp_path_factory.mktemp("straight") / "run"
    train(run, "training.iterations=3").succeeded()
    return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The run, what the command said, and the mark that its processes carried."""
    run = tmp_path_factory.mktemp("demo") / "run"
    mark = uuid.uuid4().hex
    command = ("train", "recipes/demo.yaml", *SMALL, f"tracking.run_dir={run}")
    return run, dro_rl(*command, timeout=560, DRO_RL_TEST_MARK=mark), mark, command


@pytest.fixture
def result(trained):
    return trained[1].succeeded()


@pytest.fixture
def run(trained, result) -> Path:
    return trained[0]


@pytest.fixture
def copy(run, tmp_path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy"))
