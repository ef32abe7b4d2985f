"""Dashboards that fail, or are slow, never end a run; what cannot work is refused before it."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from dro_rl.errors import UserError
from dro_rl.recipe import Recipe
from dro_rl.tracking import trackers
from dro_rl.tracking.dashboards import CHECKS, OPEN
from dro_rl.tracking.run_directory import RunDirectory
from dro_rl.tracking.trackers import check_trackers, following
from tests.tracked_runs import (
    close,
    evaluate,
    expected,
    in_tensorboard,
    recipe_with,
    step,
    train,
)

pytestmark = pytest.mark.unit


class Failing:
    last = -1

    def __init__(self, recipe: Recipe, run: RunDirectory) -> None:
        pass

    def log(self, row: Mapping[str, float], step: int) -> None:
        if step == 2:
            raise ConnectionError("https://me:sesame-sesame@host is away")

    def close(self, done: bool) -> None:
        raise AssertionError("it has been given up")


def test_one_that_fails_is_told_once_and_the_others_go_on(tmp_path, monkeypatch):
    monkeypatch.setitem(OPEN, "wandb", Failing)
    settings = recipe_with(tmp_path, "wandb", "tensorboard")
    run = RunDirectory.create(settings)
    told: list[str] = []
    train(run, settings, told.append)
    assert len(told) == 1 and "wandb failed" in told[0] and "is away" in told[0]
    assert "sesame" not in told[0]
    assert len(run.steps()) == 4
    assert in_tensorboard(run) == close(expected(run))


def test_one_that_does_not_open_is_told_and_the_run_goes_on(tmp_path, monkeypatch):
    def refuse(recipe: Recipe, run: RunDirectory) -> None:
        raise RuntimeError("no room")

    monkeypatch.setitem(OPEN, "mlflow", refuse)
    settings = recipe_with(tmp_path, "mlflow")
    run = RunDirectory.create(settings)
    told: list[str] = []
    train(run, settings, told.append)
    assert len(told) == 1 and "mlflow failed" in told[0] and "no room" in told[0]
    assert len(run.steps()) == 4


class Slow(Failing):
    """Two steps take it long, one does not, three do."""

    clock = 0.0

    def log(self, row: Mapping[str, float], step: int) -> None:
        Slow.clock += 5.5 if step in (0, 1, 3, 4, 5) else 0.5
        assert step < 6, "it has been given up"

    def close(self, done: bool) -> None:
        raise AssertionError("it has been given up")


def test_one_that_is_slow_three_times_in_a_row_is_left(tmp_path, monkeypatch):
    monkeypatch.setitem(OPEN, "mlflow", Slow)
    monkeypatch.setattr(trackers.time, "monotonic", lambda: Slow.clock)
    settings = recipe_with(tmp_path, "mlflow")
    run = RunDirectory.create(settings)
    told: list[str] = []
    with following(settings, run, told.append):
        evaluate(run)
        for number in range(1, 9):
            step(run, number)
            assert len(told) == (number > 5)  # a step is sent when the next comes
    assert "mlflow failed" in told[0] and "last 3 rows took it over 5 s" in told[0]


def test_what_is_not_there_is_refused_before_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="trackio is not installed: pip install trackio"):
        check_trackers(recipe_with(tmp_path, "trackio"))
    check_trackers(recipe_with(tmp_path))


def test_one_that_cannot_be_used_is_refused_before_the_start(tmp_path, monkeypatch):
    def refuse() -> None:
        raise PermissionError("no key in https://me:sesame-sesame@host")

    monkeypatch.setattr(trackers, "find_spec", lambda name: True)
    monkeypatch.setitem(CHECKS, "wandb", refuse)
    with pytest.raises(UserError, match="tracking.trackers: wandb cannot be used: no key") as told:
        check_trackers(recipe_with(tmp_path, "wandb"))
    assert "sesame" not in str(told.value)
