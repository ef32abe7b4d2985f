"""The ranks of a learner as one worker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dro_rl.cluster import Done, Team
from dro_rl.hardware import Device, Memory


class RankTeam:
    """A team of one for its callers. Every call goes to all ranks, in the same order, and the
    first one's answer counts.

    Args:
        ranks: rank 0 first.
    """

    def __init__(self, ranks: Team) -> None:
        self.ranks = ranks

    def ready(self) -> list[Any]:
        return self.ranks.ready()[:1]

    def submit(self, method: str, *args: Any) -> Callable[[], list[Any]]:
        wait = self.ranks.submit(method, *args)
        return lambda: wait()[:1]

    def begin(self, method: str, calls: Sequence[tuple]) -> Callable[[], list[Any]]:
        waits = [self.submit(method, *call) for call in calls[:1]]
        return lambda: [result for wait in waits for result in wait()]

    def leave(self, method: str) -> Any:
        return self.ranks.leave(method)

    def map(self, method: str, chunks: Sequence[tuple], done: Done) -> list[Any]:
        results = []
        for i, chunk in enumerate(chunks):
            results += self.submit(method, *chunk)()
            done(i)
        return results

    def devices(self) -> list[Device]:
        return self.ranks.devices()

    def memory(self) -> list[Memory]:
        return self.ranks.memory()
