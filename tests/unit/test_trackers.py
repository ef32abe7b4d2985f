"""Dashboards get what metrics.jsonl has, once."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dro_rl.tracking.run_directory import RunDirectory
from dro_rl.tracking.trackers import check_trackers
from tests.tracked_runs import (
    Curves,
    close,
    expected,
    in_tensorboard,
    killed,
    recipe_with,
    resume,
    train,
)

pytestmark = pytest.mark.unit


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
