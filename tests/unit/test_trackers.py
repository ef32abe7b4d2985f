"""Dashboards get what metrics.jsonl has, once, and never end a run."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from dro_rl.errors import UserError
from dro_rl.recipe import Recipe
from dro_rl.tracking import trackers
from dro_rl.tracking.dashboards import CHECKS, OPEN
from dro_rl.tracking.run_directory import RunDirectory
from dro_rl.tracking.trackers import check_trackers, following
from tests.made_runs import recipe

pytestmark = pytest.mark.unit

Curves = dict[str, dict[int, float]]


def recipe_with(folder: Path, *names: str) -> Recipe:
    place = str(folder / "runs" / "one")
    return recipe(folder, tracking={"run_dir": place, "trackers": list(names), "project": "tests"})


def evaluate(run: RunDirectory) -> None:
    run.write_evaluation("iteration-0000", {"iteration": 0, "em": 0.25, "gold_recall": None}, [])


def step(run: RunDirectory, number: int, loss: float = 0.5) -> None:
    iteration = 1 + (number - 1) // 2
    run.append_metrics({"iteration": iteration, "step": number, "selector/loss": loss / number})


def end(run: RunDirectory, iteration: int) -> None:
    figures = {"evaluation/em": 0.25 + iteration / 10, "evaluation/recall@1": math.nan}
    run.append_metrics({"iteration": iteration, **figures, "time/learn": 3.5 * iteration})


def train(run: RunDirectory, settings: Recipe, say=lambda text: None) -> None:
    """Two iterations of two steps."""
    with following(settings, run, say):
        evaluate(run)
        for number in (1, 2, 3, 4):
            step(run, number)
            if number % 2 == 0:
                end(run, number // 2)


def killed(run: RunDirectory, settings: Recipe) -> None:
    """It has its first iteration's checkpoint, and one step of the second that was never saved."""
    with following(settings, run, lambda text: None):
        evaluate(run)
        step(run, 1)
        step(run, 2)
        end(run, 1)
        step(run, 3, loss=7.0)


def resume(run: RunDirectory, settings: Recipe) -> None:
    run.drop_after(1, 2)
    with following(settings, run, lambda text: None):
        step(run, 3)
        step(run, 4)
        end(run, 2)


def expected(run: RunDirectory) -> Curves:
    """What metrics.jsonl and the warm start say, by name and step."""
    curves: Curves = defaultdict(dict)
    for row in run.evaluations():
        curves["evaluation/em"][0] = row["em"]
        curves["iteration"][0] = 0.0
    last = 0
    for row in [*run.history()][1:]:
        last = row.get("step", last)
        for name, value in row.items():
            if name != "step" and value is not None:
                curves[name][last] = value
    return curves


def in_tensorboard(run: RunDirectory) -> Curves:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    events = EventAccumulator(str(run.path / "tensorboard")).Reload()
    curves: Curves = {}
    for name in events.Tags()["scalars"]:
        rows = events.Scalars(name)
        curves[name] = {row.step: row.value for row in rows}
        assert len(rows) == len(curves[name]), f"{name}: a step is there twice"
    return curves


def close(curves: Curves) -> dict[str, Any]:
    """TensorBoard keeps 32 bits."""
    return {name: pytest.approx(steps, rel=1e-6) for name, steps in curves.items()}


# --- TensorBoard ----------------------------------------------------------------------------------


def test_tensorboard_shows_what_metrics_has(tmp_path):
    settings = recipe_with(tmp_path, "tensorboard")
    run = RunDirectory.create(settings)
    train(run, settings)
    assert in_tensorboard(run) == close(expected(run))
    assert in_tensorboard(run)["evaluation/em"] == pytest.approx({0: 0.25, 2: 0.35, 4: 0.45})


def test_a_resumed_run_is_not_there_twice(tmp_path):
    settings = recipe_with(tmp_path, "tensorboard")
    run = RunDirectory.create(settings)
    killed(run, settings)
    resume(run, settings)
    assert in_tensorboard(run) == close(expected(run))
    assert in_tensorboard(run)["selector/loss"][3] == pytest.approx(0.5 / 3)


def test_a_tracker_that_is_added_on_resuming_gets_the_whole_run(tmp_path):
    settings = recipe_with(tmp_path)
    run = RunDirectory.create(settings)
    killed(run, settings)
    assert not (run.path / "tensorboard").exists()
    resume(run, recipe_with(tmp_path, "tensorboard"))
    assert in_tensorboard(run) == close(expected(run))


# --- those that fail ------------------------------------------------------------------------------


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


# --- Weights & Biases online, as far as a resumed run needs it ------------------------------------


class Online:
    """A server's runs by their id, and the module that reaches it."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[int, dict[str, float]]] = {}

    def Settings(self, **settings: Any) -> dict[str, Any]:
        return settings

    def init(self, *, id: str, resume: str, **rest: Any) -> OnlineRun:
        assert resume == "allow"
        return OnlineRun(self.runs.setdefault(id, {}))


class OnlineRun:
    def __init__(self, steps: dict[int, dict[str, float]]) -> None:
        self.steps, self.starting_step = steps, max(steps, default=-1) + 1

    def log(self, row: dict[str, float], step: int) -> None:
        assert step > max(self.steps, default=-1), "its server leaves out what comes again"
        self.steps[step] = row

    def finish(self, exit_code: int) -> None:
        pass


def test_weights_and_biases_online_gets_what_it_lacks_alone(tmp_path, monkeypatch):
    server = Online()
    monkeypatch.setitem(sys.modules, "wandb", server)
    settings = recipe_with(tmp_path, "wandb")
    run = RunDirectory.create(settings)
    killed(run, settings)
    (steps,) = server.runs.values()
    assert [*steps] == [0, 1, 2]
    resume(run, settings)
    (steps,) = server.runs.values()
    curves: Curves = defaultdict(dict)
    for number, row in steps.items():
        for name, value in row.items():
            curves[name][number] = value
    assert curves == expected(run)


# --- the others, where they are installed ---------------------------------------------------------


@pytest.fixture
def elsewhere(tmp_path, monkeypatch) -> Path:
    """A working folder, and places for what dashboards write."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    return tmp_path


def in_mlflow(run: RunDirectory) -> Curves:
    import mlflow

    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("tests")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    curves: Curves = {}
    for name in found.data.metrics:
        rows = client.get_metric_history(found.info.run_id, name)
        curves[name.replace(" at ", "@")] = {row.step: row.value for row in rows}
        assert len(rows) == len(curves[name.replace(" at ", "@")]), f"{name}: twice"
    return curves


def in_trackio(run: RunDirectory) -> Curves:
    from trackio.sqlite_storage import SQLiteStorage

    (name,) = SQLiteStorage.get_runs("tests")
    curves: Curves = defaultdict(dict)
    for row in SQLiteStorage.get_logs("tests", name):
        for key, value in row.items():
            if isinstance(value, int | float) and key != "step":
                assert row["step"] not in curves[key], f"{key}: twice"
                curves[key][row["step"]] = value
    return curves


@pytest.mark.parametrize(("name", "read"), [("mlflow", in_mlflow), ("trackio", in_trackio)])
def test_another_dashboard_has_every_step_once(name, read, elsewhere):
    pytest.importorskip(name)
    settings = recipe_with(elsewhere, name)
    check_trackers(settings)
    run = RunDirectory.create(settings)
    killed(run, settings)
    resume(run, settings)
    assert {k: pytest.approx(v) for k, v in expected(run).items()} == read(run)


def test_weights_and_biases_offline_has_the_whole_run_in_its_last_folder(elsewhere):
    wandb = pytest.importorskip("wandb")
    settings = recipe_with(elsewhere, "wandb")
    check_trackers(settings)
    run = RunDirectory.create(settings)
    killed(run, settings)
    resume(run, settings)
    wandb.teardown()  # its own process writes the file
    folders = sorted((run.path / "wandb").glob("offline-run-*"))
    identity = (run.path / "tracking_id").read_text()
    assert len(folders) == 2 and all(f.name.endswith(identity) for f in folders)
    records = [*in_wandb(folders[-1])]
    assert wandb_curves(records) == {k: pytest.approx(v) for k, v in expected(run).items()}
    kinds = {record.WhichOneof("record_type") for record in records}
    assert "environment" not in kinds and "files" not in kinds  # paths, commit, packages
    (about,) = (r.run for r in records if r.WhichOneof("record_type") == "run")
    assert not about.HasField("git")
    assert not [p for p in (folders[-1] / "files").rglob("*") if p.is_file()]


def in_wandb(folder: Path) -> Iterator[Any]:
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("*.wandb")
    for content in leveldb_log(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(content)
        yield record


def wandb_curves(records: list[Any]) -> Curves:
    curves: Curves = defaultdict(dict)
    for record in records:
        if record.WhichOneof("record_type") != "history":
            continue
        row = {
            "/".join(item.nested_key) or item.key: json.loads(item.value_json)
            for item in record.history.item
        }
        for name, value in row.items():
            if not name.startswith("_"):
                assert row["_step"] not in curves[name], f"{name}: twice"
                curves[name][row["_step"]] = value
    return curves


def leveldb_log(data: bytes, block: int = 32768, header: int = 7) -> Iterator[bytes]:
    """The records of the format that its files have: in parts that end with a block."""
    place, record = header, b""
    while place + header <= len(data):
        if block - place % block < header:
            place += block - place % block
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        record += data[place + header : place + header + length]
        place += header + length
        if kind in (1, 4):  # the whole of it, or its last part
            yield record
            record = b""
