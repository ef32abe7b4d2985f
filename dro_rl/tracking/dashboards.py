"""The dashboards that `tracking.trackers` names: how each is opened and told a row."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from dro_rl.durable import write_text
from dro_rl.recipe import Recipe
from dro_rl.tracking.run_directory import RunDirectory

_PATIENCE = 60.0  # seconds that the end of a run waits for uploads


class Dashboard(Protocol):
    """A dashboard's side of one run."""

    last: int
    """The last step that it has; -1 where it has none."""

    def log(self, row: Mapping[str, float], step: int) -> None:
        """Numbers by name. Steps rise."""
        ...

    def close(self, done: bool) -> None:
        """Send what is left; says whether the run has done its iterations."""
        ...


class _TensorBoard:
    """RUN/tensorboard, written anew from metrics.jsonl when the run is resumed: what a killed run
    logged after its last checkpoint is not in it twice."""

    def __init__(self, recipe: Recipe, run: RunDirectory) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        # Their classes are made as they are imported: no type checker knows them.
        self.events: Any = event_pb2
        self.summaries: Any = summary_pb2
        self.last = -1
        folder = run.path / "tensorboard"
        shutil.rmtree(folder, ignore_errors=True)
        self.writer = EventFileWriter(str(folder))
        # Has a server that shows the folder forget what it read before.
        start = self.events.SessionLog(status=self.events.SessionLog.START)
        self._write(session_log=start, step=0)

    def log(self, row: Mapping[str, float], step: int) -> None:
        new = self.summaries.Summary
        values = [new.Value(tag=name, simple_value=value) for name, value in row.items()]
        self._write(summary=new(value=values), step=step)

    def _write(self, **content: Any) -> None:
        self.writer.add_event(self.events.Event(wall_time=time.time(), **content))
        self.writer.flush()

    def close(self, done: bool) -> None:
        self.writer.close()


class _Wandb:
    def __init__(self, recipe: Recipe, run: RunDirectory) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        # Numbers and the recipe: no console, no code, nothing of the repository that it runs in.
        settings = wandb.Settings(
            console="off",
            save_code=False,
            disable_git=True,
            x_save_requirements=False,
            x_disable_meta=True,
            finish_timeout=_PATIENCE,
        )
        self.run = wandb.init(
            project=recipe.tracking.project,
            name=_name(run),
            id=_id(run),
            resume="allow",
            dir=str(run.path),
            config=recipe.resolved(),
            settings=settings,
        )
        self.last = self.run.starting_step - 1  # offline, where nothing is known, all comes again

    def log(self, row: Mapping[str, float], step: int) -> None:
        self.run.log(dict(row), step=step)

    def close(self, done: bool) -> None:
        self.run.finish(exit_code=int(not done))


class _Mlflow:
    def __init__(self, recipe: Recipe, run: RunDirectory) -> None:
        import mlflow  # pyright: ignore[reportMissingImports]

        self.client = mlflow.MlflowClient()
        experiment = mlflow.set_experiment(recipe.tracking.project).experiment_id
        known = self.client.search_runs([experiment], f"tags.dro_rl_id = '{_id(run)}'")
        if known:
            self.id = known[0].info.run_id
            self.client.update_run(self.id, "RUNNING")
        else:
            tags = {"dro_rl_id": _id(run)}
            made = self.client.create_run(experiment, tags=tags, run_name=_name(run))
            self.id = made.info.run_id
            self.client.log_dict(self.id, recipe.resolved(), "recipe.yaml")
        had = self.client.get_metric_history(self.id, "iteration")
        self.last = max((m.step for m in had), default=-1)

    def log(self, row: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric  # pyright: ignore[reportMissingImports]

        now = int(time.time() * 1000)
        # Its names may not hold an @.
        metrics = [Metric(k.replace("@", " at "), v, now, step) for k, v in row.items()]
        self.client.log_batch(self.id, metrics=metrics)

    def close(self, done: bool) -> None:
        self.client.set_terminated(self.id, "FINISHED" if done else "FAILED")


class _Trackio:
    def __init__(self, recipe: Recipe, run: RunDirectory) -> None:
        import trackio  # pyright: ignore[reportMissingImports]

        self.trackio = trackio
        opened = trackio.init(
            project=recipe.tracking.project,
            name=f"{_name(run)}-{_id(run)[:6]}",  # which is all that it knows a run by
            config=recipe.resolved(),
            resume="allow",
            embed=False,
        )
        self.last = opened._next_step - 1

    def log(self, row: Mapping[str, float], step: int) -> None:
        self.trackio.log(dict(row), step=step)

    def close(self, done: bool) -> None:
        self.trackio.finish()


def _name(run: RunDirectory) -> str:
    """Of several runs of a comparison, the arm and the seed."""
    return "-".join(run.path.parts[-2:])


def _id(run: RunDirectory) -> str:
    """What dashboards know the run by, on every machine that it is resumed on."""
    path = run.path / "tracking_id"
    if not path.exists():
        write_text(path, secrets.token_hex(8))
    return path.read_text(encoding="utf-8").strip()


# --- before a run ---------------------------------------------------------------------------------


def _log_in() -> None:
    """Asks for the key on a terminal, and raises without one."""
    import wandb  # pyright: ignore[reportMissingImports]

    if os.environ.get("WANDB_MODE", "online") != "online":
        return
    try:
        known, why = wandb.login(), "there is no key."
    except wandb.Error as error:
        known, why = False, str(error)
    if not known:
        raise ValueError(f"{why} WANDB_MODE=offline needs none, and `wandb sync` sends it later")


def _ask_mlflow() -> None:
    # Its own patience, minutes a request, would be the run's.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    import mlflow  # pyright: ignore[reportMissingImports]

    if mlflow.get_tracking_uri().startswith("http"):
        mlflow.MlflowClient().search_experiments(max_results=1)


CHECKS: dict[str, Callable[[], object]] = {
    "tensorboard": lambda: None,
    "wandb": _log_in,
    "mlflow": _ask_mlflow,
    "trackio": lambda: None,
}
OPEN: dict[str, Callable[[Recipe, RunDirectory], Dashboard]] = {
    "tensorboard": _TensorBoard,
    "wandb": _Wandb,
    "mlflow": _Mlflow,
    "trackio": _Trackio,
}
