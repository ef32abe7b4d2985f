"""What may be asked of the processes of a run, wherever they live: on Ray, or in this one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from dro_rl.cluster.team_work import Check, Done
from dro_rl.hardware import Device, Memory


class Team(Protocol):
    """n workers of one role. On Ray, those of a role without state are made again when they are
    lost, and what is asked of every worker is then asked of the others; see
    `dro_rl.cluster.supervision`.
    """

    def ready(self) -> list[Any]:
        """Wait until every worker is made; what each says of itself."""
        ...

    def submit(self, method: str, *args: Any) -> Callable[[], list[Any]]:
        """Start a method on every worker; the returned function waits for all results."""
        ...

    def begin(self, method: str, calls: Sequence[tuple]) -> Callable[[], list[Any]]:
        """`map` in the background where there is one; the returned function waits for the
        results."""
        ...

    def leave(self, method: str) -> Any:
        """What a method of the first worker gives, left where it is: `submit` takes it as an
        argument for another team, and it does not pass through this process."""
        ...

    def on_return(
        self, method: str, args: tuple, check: Check | None = None, *, anew: bool = False
    ) -> None:
        """What a worker that is made again goes through before it takes work, beside what was said
        before of other methods; `anew` forgets that (of a worker with parts, what was said of the
        same part). `check` is given the result."""
        ...

    def forget(self) -> None:
        """Nothing of what was said with `on_return` holds any more, of any part."""
        ...

    def restart(self) -> None:
        """Begin to make all workers afresh, as they were before their first call; see `ready`."""
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

    def start(
        self, role: str, cls: type, copies: int, *args: Any, stateful: bool = False, gpus: int = 1
    ) -> Team:
        """Begin to make `copies` of cls(*args), on Ray each in a process of its own.

        Does not wait: roles start side by side, and `Team.ready` waits for one. A worker of a
        `stateful` role is not made again when it is lost: calls raise `WorkerLost` then. One of
        several `gpus` has them for itself, of one machine.
        """
        ...

    def start_ranks(self, role: str, cls: type, ranks: int, *args: Any) -> Team:
        """The same, of n > 1 that work as one: cls(*args, place), stateful.

        Waits until there is room for all.

        Raises:
            UserError: there is none within `start_timeout`.
        """
        ...
