"""The ranks of a learner as one worker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dro_rl.cluster.ray_results import WorkerLost
from dro_rl.cluster.team import Team
from dro_rl.cluster.team_work import Check, Done
from dro_rl.errors import UserError
from dro_rl.hardware import Device, Memory

_BROKEN = ("gloo/transport", "DistBackendError", "DistNetworkError", "NCCL error")
"""In the account of a rank whose connection to another ended."""


class RankTeam:
    """A team of one for its callers. Every call goes to all ranks, in the same order, and the
    first one's answer counts.

    Args:
        ranks: rank 0 first.
    """

    def __init__(self, ranks: Team) -> None:
        self.ranks = ranks

    def ready(self) -> list[Any]:
        return _of_all(self.ranks.ready)[:1]

    def submit(self, method: str, *args: Any) -> Callable[[], list[Any]]:
        wait = self.ranks.submit(method, *args)
        return lambda: _of_all(wait)[:1]

    def begin(self, method: str, calls: Sequence[tuple]) -> Callable[[], list[Any]]:
        return lambda: self.map(method, calls, lambda number: None)

    def leave(self, method: str) -> Any:
        return _of_all(lambda: self.ranks.leave(method))

    def on_return(
        self, method: str, args: tuple, check: Check | None = None, *, anew: bool = False
    ) -> None:
        self.ranks.on_return(method, args, check, anew=anew)

    def forget(self) -> None:
        self.ranks.forget()

    def restart(self) -> None:
        self.ranks.restart()

    def map(self, method: str, chunks: Sequence[tuple], done: Done) -> list[Any]:
        results = []
        for number, chunk in enumerate(chunks):
            results += self.submit(method, *chunk)()
            done(number)
        return results

    def devices(self) -> list[Device]:
        return self.ranks.devices()

    def memory(self) -> list[Memory]:
        return self.ranks.memory()


def _of_all(call: Callable[[], Any]) -> Any:
    """What a call gives. When one rank dies, another often says so before the cluster does.

    Raises:
        WorkerLost: a rank lost its connection to another.
    """
    try:
        return call()
    except UserError:
        raise
    except Exception as error:
        account = [line for line in str(error).splitlines() if any(b in line for b in _BROKEN)]
        if not account:
            raise
        raise WorkerLost(f"a rank lost its connection to another ({account[-1][:200]})") from error
