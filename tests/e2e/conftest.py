"""Runs that several files of tests read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.local_runs import train


@pytest.fixture(scope="session")
def straight(tmp_path_factory) -> Path:
    """Three iterations without interruption; to be copied before anything is changed in it."""
    run = tmp_path_factory.mktemp("straight") / "run"
    train(run, "training.iterations=3").succeeded()
    return run
