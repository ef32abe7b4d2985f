"""Workers that end where they are told to, and what a run leaves, to compare bit by bit.

`Fault.plant` leaves a file in the folder that FOLDER names in the environment of all nodes; the
host that it is meant for takes it away and kills, or stops, its own process.
"""

from __future__ import annotations

import io
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console as RichConsole

from dro_rl.cluster.host import Host
from dro_rl.cluster.processes import LocalTeam
from dro_rl.cluster.ray_results import WorkerLost
from dro_rl.recipe_file import load_recipe, localise
from dro_rl.tracking.console import Console

FOLDER = "DRO_RL_TEST_FAULTS"
SIZE = {"num_cpus": 2, "object_store_memory": 100_000_000}  # of a node


@dataclass(frozen=True)
class Fault:
    """`role` ("selector engine", "reward service", ...) gets `number` in the call of `method` that
    comes after `skip` others: before the work, or, `after` it, before the result is told."""

    role: str
    method: str
    skip: int = 0
    after: bool = False
    number: int = signal.SIGKILL

    @property
    def path(self) -> Path:
        return Path(os.environ[FOLDER]) / f"{self.role}.{self.method}"

    def plant(self) -> None:
        """Behind those that are there for the same call; `skip` counts from the last of them."""
        before = json.loads(self.path.read_text()) if self.path.exists() else []
        self.path.write_text(json.dumps([*before, [self.skip, self.after, self.number]]))

    @property
    def struck(self) -> bool:
        """Whether all for this call did."""
        return not self.path.exists()


class MortalHost(Host):
    """A host that faults strike."""

    def make(self, cls: type, args: tuple) -> None:
        self.role = role_of(cls, args)
        self.call_of("make", lambda: super(MortalHost, self).make(cls, args))

    def call(self, method: str, args: tuple) -> Any:
        return self.call_of(method, lambda: super(MortalHost, self).call(method, args))

    def call_of(self, method: str, work: Any) -> Any:
        after = self._struck(method)
        result = work()
        if after:
            os.kill(os.getpid(), after)
        return result

    def _struck(self, method: str) -> int:
        """The signal that is due after the work; 0 for none. One that is due before comes now."""
        planted = Fault(self.role, method).path
        taken = planted.with_suffix(f".{os.getpid()}")
        try:
            planted.rename(taken)
        except FileNotFoundError:
            return 0
        (skip, after, number), *others = json.loads(taken.read_text())
        left = [[skip - 1, after, number], *others] if skip else others
        taken.write_text(json.dumps(left))
        taken.rename(planted) if left else taken.unlink()
        if skip:
            return 0
        if not after:
            os.kill(os.getpid(), number)
        return number


def role_of(cls: type, args: tuple) -> str:
    """The role of a worker of `dro_rl.teams`, as its faults name it."""
    kinds = {"RolloutWorker": "engine", "Learner": "learner"}
    return f"{args[1]} {kinds[cls.__name__]}" if cls.__name__ in kinds else "reward service"


class MortalTeam(LocalTeam):
    """Workers in this process that are lost where they are told to, and made afresh.

    Args:
        role: as `Fault` names it.
        make: the workers.
        faults: whose `number` does not matter; each strikes once.
    """

    def __init__(self, role: str, make: Callable[[], list[Any]], faults: list[Fault]) -> None:
        super().__init__(make())
        self.role, self.make, self.faults = role, make, faults
        self.calls = Counter[str]()

    def submit(self, method: str, *args: Any) -> Callable[[], list[Any]]:
        return self._struck(method, lambda: super(MortalTeam, self).submit(method, *args))

    def leave(self, method: str) -> Any:
        return self._struck(method, lambda: super(MortalTeam, self).leave(method))

    def restart(self) -> None:
        self.workers = self.make()

    def _struck(self, method: str, call: Callable[[], Any]) -> Any:
        passed, self.calls[method] = self.calls[method], self.calls[method] + 1
        for fault in self.faults:
            if (fault.role, fault.method, fault.skip) == (self.role, method, passed):
                self.faults.remove(fault)
                if fault.after:
                    call()
                raise WorkerLost(f"{self.role}: lost in {method} (it was told to)")
        return call()


# --- runs -----------------------------------------------------------------------------------------

SMALL = (
    *("rollout.engine=transformers", "training.iterations=2", "training.weights=frozen"),
    *("data.train_questions=16", "data.evaluation_questions=4", "algorithm.samples=2"),
    *("training.questions_per_iteration=8", "training.batch_size=4", "evaluation.samples=2"),
)


class Obedient:
    """Does what it is told; Ray imports it in processes of its own."""

    def __init__(self) -> None:
        self.version = 0

    def ready(self) -> dict[str, int]:
        return {"pid": os.getpid()}

    def load_weights(self, version: int) -> None:
        self.version = version

    def now(self) -> tuple[int, int]:
        return self.version, os.getpid()

    def square(self, value: int, fatal: Path | None = None) -> int:
        """Dies of a file, and takes it along; of /dev/null, which stays, every time."""
        if fatal is not None and fatal.exists():
            if fatal.is_file():
                fatal.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.05)
        return value * value

    def dawdle(self, how: str, seconds: float, flag: Path) -> str:
        """Goes on for a while; the first call for ever, where it stands still."""
        first = not flag.exists()
        flag.touch()
        end = time.monotonic() + seconds
        if how == "stands still" and first:
            threading.Event().wait()
        if how == "is stopped" and first:
            os.kill(os.getpid(), signal.SIGSTOP)
        while how == "computes" and time.monotonic() < end:
            pass
        while how == "moves on" and time.monotonic() < end:
            time.sleep(0.02)
        return how

    def refuse(self, flag: Path) -> None:
        with flag.open("a") as file:
            file.write("called\n")
        raise LookupError("the reward's own words")


def run_of(run: Path, *overrides: str) -> tuple[Path, str]:
    """Train the demo, made small, in this process; the run's folder, and what was said."""
    from dro_rl.trainer import train

    settings, said = [*SMALL, *overrides, f"tracking.run_dir={run}"], io.StringIO()
    recipe = localise(load_recipe("recipes/demo.yaml", settings))
    train(recipe, Console(RichConsole(file=said, soft_wrap=True)))
    return run, said.getvalue()


def start_cluster() -> Any:
    """A cluster of a head, to which nodes can be added; a node's death shows within seconds."""
    from ray.cluster_utils import Cluster

    quick = {"health_check_period_ms": 500, "health_check_failure_threshold": 3}
    head = {**SIZE, "_system_config": quick, "include_dashboard": False}
    return Cluster(initialize_head=True, head_node_args=head)


def outcome(run: Path) -> dict[str, Any]:
    """What a run is for: policies, selections, evaluations and metrics, without what it took."""
    left: dict[str, Any] = {
        str(p.relative_to(run)): p.read_bytes()
        for p in run.glob("checkpoints/iteration-????/*/model*.safetensors")
    }
    for path in run.glob("evaluation/*.jsonl"):
        left[path.name] = path.read_text()
    for path in run.glob("evaluation/*.json"):
        left[path.name] = _results(json.loads(path.read_text()))
    rows = (run / "metrics.jsonl").read_text().splitlines()
    left["metrics"] = [_results(json.loads(row)) for row in rows]
    return left


def _results(row: dict[str, Any]) -> dict[str, Any]:
    """Without times, and what was counted by processes that are gone."""
    took = ("time/", "share/", "tokens/", "tokens_per_second/", "mfu/", "memory/", "gpu_memory/")
    took += ("rollout/prefix_cache_hits",)
    return {k: v for k, v in row.items() if not k.startswith(took) and "seconds" not in k}


def differences(run: Path, other: Path) -> list[str]:
    """The names of what differs between two runs."""
    ours, theirs = outcome(run), outcome(other)
    return [name for name in ours | theirs if ours.get(name) != theirs.get(name)]
