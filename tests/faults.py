"""Workers that end where they are told to, and what a run leaves, to compare bit by bit.

`Fault.plant` leaves a file in the folder that FOLDER names in the environment of all nodes; the
host that it is meant for takes it away and kills, or stops, its own process.
"""

from __future__ import annotations

import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dro_rl.host import Host

FOLDER = "DRO_RL_TEST_FAULTS"


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
        self.path.write_text(json.dumps([self.skip, self.after, self.number]))

    @property
    def struck(self) -> bool:
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
        skip, after, number = json.loads(taken.read_text())
        if skip:
            taken.write_text(json.dumps([skip - 1, after, number]))
            taken.rename(planted)
            return 0
        taken.unlink()
        if not after:
            os.kill(os.getpid(), number)
        return number


def role_of(cls: type, args: tuple) -> str:
    """The role of a worker of `dro_rl.teams`, as its faults name it."""
    kinds = {"RolloutWorker": "engine", "Learner": "learner"}
    return f"{args[1]} {kinds[cls.__name__]}" if cls.__name__ in kinds else "reward service"


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
