"""Starts the processes of a run: on Ray, or all in this process (`cluster.mode: local`).

Both give `Team`s with the same calls, so the trainer does not know which it has.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from dro_rl import hardware
from dro_rl.errors import UserError
from dro_rl.hardware import Device, Memory
from dro_rl.libraries import quiet_libraries
from dro_rl.placement import Room, gpu_shares
from dro_rl.recipe import ClusterSection
from dro_rl.rollout.environment import has_gpu

Done = Callable[[int], None]


class Team(Protocol):
    """n workers of one role."""

    def ready(self) -> list[Any]:
        """Wait until every worker is made; what each says of itself."""
        ...

    def submit(self, method: str, *args: Any) -> Callable[[], list[Any]]:
        """Start a method on every worker; the returned function waits for all results."""
        ...

    def begin(self, method: str, calls: Sequence[tuple]) -> Callable[[], list[Any]]:
        """One call a worker, at most, in the background where there is one; the returned function
        waits for the results."""
        ...

    def leave(self, method: str) -> Any:
        """What a method of the first worker gives, left where it is: `submit` takes it as an
        argument for another team, and it does not pass through this process."""
        ...

    def map(self, method: str, chunks: Sequence[tuple], done: Done) -> list[Any]:
        """One call a chunk, on whichever worker is free; results in the chunks' order.

        `done(i)` is called as chunk i's result arrives.
        """
        ...

    def devices(self) -> list[Device]:
        """What each worker's process runs on."""
        ...

    def memory(self) -> list[Memory]:
        """What each worker's process has held."""
        ...


class Cluster(Protocol):
    """Where workers live."""

    def start(self, role: str, cls: type, copies: int, *args: Any) -> Team:
        """Begin to make `copies` of cls(*args), on Ray each in a process of its own.

        Does not wait: roles start side by side, and `Team.ready` waits for one.
        """
        ...

    def start_ranks(self, role: str, cls: type, ranks: int, *args: Any) -> Team:
        """The same, of n > 1 that work as one: cls(*args, place), and room for all or none.

        Raises:
            UserError: there is none within `start_timeout`.
        """
        ...


@contextmanager
def open_cluster(section: ClusterSection, processes: int, ranks: int = 0) -> Iterator[Cluster]:
    """The cluster of a recipe; everything started on it ends with the block.

    Args:
        section: the recipe's `cluster`.
        processes: how many workers the run will start, to divide the GPUs among.
        ranks: how many of them belong to learners of several.
    Raises:
        UserError: the Ray address does not answer.
    """
    if section.mode == "local":
        yield _LocalCluster()
        return
    import ray

    _connect(section, processes)
    gpus = int(ray.cluster_resources().get("GPU", 0))
    cluster = _RayCluster(section, *gpu_shares(processes, ranks, gpus))
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

    def devices(self) -> list[Device]:
        return [hardware.device()] * len(self.workers)

    def memory(self) -> list[Memory]:
        return [hardware.memory()] * len(self.workers)


class _LocalCluster:
    def start(self, role: str, cls: type, copies: int, *args: Any) -> Team:
        return LocalTeam([cls(*args) for _ in range(copies)])

    def start_ranks(self, role: str, cls: type, ranks: int, *args: Any) -> Team:
        raise NotImplementedError("the recipe refuses several ranks in one process")


# --- on Ray ---------------------------------------------------------------------------------------


class Host:
    """The actor that holds a worker. It makes the worker in a call of its own, because an error
    in an actor's constructor loses its type on the way to the driver."""

    def __init__(self) -> None:
        quiet_libraries()  # a head that was started elsewhere has another environment
        self.worker: Any = None

    def make(self, cls: type, args: tuple) -> None:
        self.worker = cls(*args)

    def ready(self) -> Any:
        return self.worker.ready()

    def call(self, method: str, args: tuple) -> Any:
        import ray

        here = [ray.get(a) if isinstance(a, ray.ObjectRef) else a for a in args]
        return getattr(self.worker, method)(*here)

    def device(self) -> Device:
        return hardware.device()

    def memory(self) -> Memory:
        return hardware.memory()


class _RayTeam:
    def __init__(self, role: str, actors: list[Any], section: ClusterSection) -> None:
        self.role, self.actors = role, actors
        self.timeout, self.start_timeout = section.call_timeout, section.start_timeout
        self.made: list[Any] = []

    def make(self, cls: type, args: Sequence[tuple]) -> None:
        pairs = zip(self.actors, args, strict=True)
        self.made = [actor.make.remote(cls, given) for actor, given in pairs]

    def ready(self) -> list[Any]:
        self._get(self.made, "start", self.start_timeout)
        refs = [actor.ready.remote() for actor in self.actors]
        return self._get(refs, "ready", self.start_timeout)

    def submit(self, method: str, *args: Any) -> Callable[[], list[Any]]:
        import ray

        shared = ray.put(args)  # once for all workers
        refs = [actor.call.remote(method, shared) for actor in self.actors]
        return lambda: self._get(refs, method, self.timeout)

    def begin(self, method: str, calls: Sequence[tuple]) -> Callable[[], list[Any]]:
        pairs = zip(self.actors, calls, strict=False)
        refs = [actor.call.remote(method, call) for actor, call in pairs]
        return lambda: self._get(refs, method, self.timeout)

    def leave(self, method: str) -> Any:
        return [actor.call.remote(method, ()) for actor in self.actors][0]  # noqa: RUF015, ranks

    def map(self, method: str, chunks: Sequence[tuple], done: Done) -> list[Any]:
        import ray

        results: list[Any] = [None] * len(chunks)
        waiting = list(enumerate(chunks))[::-1]
        running: dict[Any, tuple[int, Any]] = {}
        idle = list(self.actors)
        while waiting or running:
            while waiting and idle:
                (index, chunk), actor = waiting.pop(), idle.pop()
                running[actor.call.remote(method, chunk)] = (index, actor)
            ready, _ = ray.wait(list(running), num_returns=1, timeout=self.timeout)
            if not ready:
                raise self._too_slow(method, self.timeout)
            index, actor = running.pop(ready[0])
            idle.append(actor)
            results[index] = self._get(ready, method, self.timeout)[0]
            done(index)
        return results

    def devices(self) -> list[Device]:
        return self._get([a.device.remote() for a in self.actors], "device", self.timeout)

    def memory(self) -> list[Memory]:
        return self._get([a.memory.remote() for a in self.actors], "memory", self.timeout)

    def _get(self, refs: list[Any], method: str, timeout: float) -> list[Any]:
        import ray
        from ray.exceptions import GetTimeoutError, RayTaskError

        try:
            return ray.get(refs, timeout=timeout)
        except GetTimeoutError as error:
            raise self._too_slow(method, timeout) from error
        except RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise UserError(str(error.cause)) from error
            raise

    def _too_slow(self, method: str, timeout: float) -> UserError:
        setting = "start_timeout" if method in ("start", "ready") else "call_timeout"
        return UserError(
            f"{self.role}: {method} did not answer within {timeout:.0f} s: see the workers' logs "
            f"(`ray logs`), or raise cluster.{setting}"
        )


class _RayCluster:
    def __init__(self, section: ClusterSection, rank_gpus: float, gpus: float) -> None:
        self.section, self.rank_gpus, self.gpus = section, rank_gpus, gpus
        self.actors: list[Any] = []
        self.rooms: list[Room] = []

    def start(self, role: str, cls: type, copies: int, *args: Any) -> Team:
        import ray

        # No CPUs are claimed: a head on a small machine would otherwise never place the last one.
        host = ray.remote(Host).options(num_cpus=0, num_gpus=self.gpus)
        actors = [host.remote() for _ in range(copies)]
        self.actors += actors
        team = _RayTeam(role, actors, self.section)
        team.make(cls, [args] * copies)
        return team

    def start_ranks(self, role: str, cls: type, ranks: int, *args: Any) -> Team:
        import ray

        room = Room(role, ranks, self.rank_gpus, self.section.start_timeout)
        self.rooms.append(room)
        host = ray.remote(Host)
        places = [room.place(i) for i in range(ranks)]
        actors = [host.options(**room.options(i)).remote() for i in range(ranks)]
        self.actors += actors
        team = _RayTeam(role, actors, self.section)
        team.make(cls, [(*args, place) for place in places])
        return team

    def stop(self) -> None:
        import ray

        for actor in self.actors:
            ray.kill(actor)
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
