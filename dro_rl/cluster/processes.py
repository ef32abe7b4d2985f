"""Starts the processes of a run: on Ray, or all in this process (`cluster.mode: local`).

Both give `Team`s with the same calls, so the trainer does not know which it has.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dro_rl import hardware
from dro_rl.cluster.host import WATCH, Host
from dro_rl.cluster.placement import Room, gpu_shares
from dro_rl.cluster.supervision import RayTeam
from dro_rl.cluster.team import Cluster, Team
from dro_rl.cluster.team_work import Check, Done, Say
from dro_rl.errors import UserError
from dro_rl.hardware import Device, Memory
from dro_rl.rollout.environment import has_gpu
from dro_rl.sections.process import ClusterSection


@contextmanager
def open_cluster(
    section: ClusterSection,
    processes: int,
    say: Say = lambda line: None,
    stacks: Path | None = None,
    ranks: int = 0,
    taken: int = 0,
) -> Iterator[Cluster]:
    """The cluster of a recipe; everything started on it ends with the block.

    Args:
        section: the recipe's `cluster`.
        processes: how many workers the run will start that share GPUs, to divide those among.
        say: is told of workers that were lost, a line each.
        stacks: folder for the stacks of those that hung.
        ranks: how many of the processes belong to learners of several.
        taken: GPUs that other workers have for themselves.
    Raises:
        UserError: the Ray address does not answer.
    """
    if section.mode == "local":
        yield _LocalCluster()
        return
    import ray

    _connect(section, processes)
    gpus = int(ray.cluster_resources().get("GPU", 0))
    rank_gpus, gpus = gpu_shares(processes, ranks, gpus, taken)
    cluster = _RayCluster(section, rank_gpus, gpus, say, stacks)
    try:
        yield cluster
    finally:
        cluster.stop()
        ray.shutdown()


# --- in this process ------------------------------------------------------------------------------


class LocalTeam:
    """Workers in this process."""

    def __init__(self, workers: list[Any]) -> None:
        self.workers = workers

    def ready(self) -> list[Any]:
        return [w.ready() for w in self.workers]

    def submit(self, method: str, *args: Any) -> Callable[[], list[Any]]:
        results = [getattr(w, method)(*args) for w in self.workers]
        return lambda: results

    def begin(self, method: str, calls: Sequence[tuple]) -> Callable[[], list[Any]]:
        pairs = list(zip(self.workers, calls, strict=False))
        return lambda: [getattr(worker, method)(*call) for worker, call in pairs]

    def leave(self, method: str) -> Any:
        return getattr(self.workers[0], method)()

    def map(self, method: str, chunks: Sequence[tuple], done: Done) -> list[Any]:
        results = []
        for i, chunk in enumerate(chunks):
            results.append(getattr(self.workers[i % len(self.workers)], method)(*chunk))
            done(i)
        return results

    def on_return(
        self, method: str, args: tuple, check: Check | None = None, *, anew: bool = False
    ) -> None:
        """Nobody leaves: a worker that dies takes this process with it."""

    def forget(self) -> None:
        pass

    def restart(self) -> None:
        raise NotImplementedError("workers in this process are not lost")

    def devices(self) -> list[Device]:
        return [hardware.device()] * len(self.workers)

    def memory(self) -> list[Memory]:
        return [hardware.memory()] * len(self.workers)


class _LocalCluster:
    def start(
        self, role: str, cls: type, copies: int, *args: Any, stateful: bool = False, gpus: int = 1
    ) -> Team:
        return LocalTeam([cls(*args) for _ in range(copies)])

    def start_ranks(self, role: str, cls: type, ranks: int, *args: Any) -> Team:
        raise NotImplementedError("the recipe refuses several ranks in one process")


# --- on Ray ---------------------------------------------------------------------------------------


class _RayCluster:
    def __init__(
        self,
        section: ClusterSection,
        rank_gpus: float,
        gpus: float,
        say: Say,
        stacks: Path | None,
    ) -> None:
        self.section, self.rank_gpus, self.gpus = section, rank_gpus, gpus
        self.say, self.stacks = say, stacks
        self.teams: list[RayTeam] = []
        self.rooms: list[Room] = []

    def start(
        self, role: str, cls: type, copies: int, *args: Any, stateful: bool = False, gpus: int = 1
    ) -> Team:
        # No CPUs are claimed: a head on a small machine would otherwise never place the last one.
        claimed = gpus if gpus > 1 and self.gpus else self.gpus
        host = self._host().options(num_cpus=0, num_gpus=claimed)
        return self._team(
            role, copies, lambda number: host.remote(), lambda number: (cls, args), stateful
        )

    def start_ranks(self, role: str, cls: type, ranks: int, *args: Any) -> Team:
        room, host = Room(role, ranks, self.rank_gpus, self.section.start_timeout), self._host()
        self.rooms.append(room)
        return self._team(
            role,
            ranks,
            lambda number: host.options(**room.options(number)).remote(),
            lambda number: (cls, (*args, room.place(number))),
            stateful=True,
        )

    def _host(self) -> Any:
        import ray

        remote: Any = ray.remote  # whose types lack concurrency_groups
        return remote(concurrency_groups={WATCH: 1})(Host)

    def _team(
        self,
        role: str,
        copies: int,
        new_actor: Callable[[int], Any],
        worker: Callable[[int], tuple[type, tuple]],
        stateful: bool,
    ) -> Team:
        team = RayTeam(
            role,
            copies,
            new_actor,
            worker,
            self.section,
            stateful=stateful,
            say=self.say,
            stacks=self.stacks,
        )
        self.teams.append(team)
        return team

    def stop(self) -> None:
        for team in self.teams:
            team.stop()
        for room in self.rooms:
            room.free()


def _connect(section: ClusterSection, processes: int) -> None:
    import ray

    # Inside `ray job submit` the environment names the cluster; there ray.init() takes no other.
    address = section.address or os.environ.get("RAY_ADDRESS")
    named = "cluster.address" if section.address else "RAY_ADDRESS in the environment"
    if address is None:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # no token file in the home folder
        ray.init(
            address="local",
            include_dashboard=False,
            num_cpus=max(processes, os.cpu_count() or 1),
            object_store_memory=200_000_000 if not has_gpu() else None,
            configure_logging=True,
            logging_level=logging.WARNING,
        )
        return
    _check_answers(address, named)
    try:
        ray.init(address=address, logging_level=logging.WARNING)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"{named} {address}: no Ray head answers there ({error}). Start one with "
            "`ray start --head`, or drop the address to run Ray inside this process"
        ) from error


def _check_answers(address: str, named: str) -> None:
    """Ray itself retries for minutes before it says that nobody is there."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdigit()):
        return  # "auto" and the like
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, OverflowError, UnicodeError) as error:  # the last two: not an address at all
        raise UserError(
            f"{named} {address}: nothing answers there ({error}). Start a head with "
            "`ray start --head`, or drop the address to run Ray inside this process"
        ) from error
