"""Where the ranks of a learner run on Ray: a place for each, near each other, and a GPU each."""

from __future__ import annotations

import math
import socket
from typing import TYPE_CHECKING, Any

from dro_rl.errors import UserError

if TYPE_CHECKING:  # torch, which a process without ranks need not load for this
    from dro_rl.ranks import Place

_RANK_SHARE = 0.6
"""Of a GPU, where others have to have the rest: more than half, so that no two ranks of a group can
be on one, which NCCL does not allow."""


class Room:
    """Reserved for n ranks: all of it, or nothing is started.

    Args:
        role: as messages name it.
        ranks: n.
        gpus: share of a GPU that each takes; 0 where there are none.
        timeout: seconds to wait until there is room.
    """

    def __init__(self, role: str, ranks: int, gpus: float, timeout: float) -> None:
        from ray.util import placement_group

        self.role, self.ranks, self.gpus, self.timeout = role, ranks, gpus, timeout
        self._address = ""
        need = {"GPU": gpus} if gpus else {"CPU": 1.0}
        self._group = placement_group([need] * ranks, strategy="PACK")

    def options(self, rank: int) -> dict[str, Any]:
        """Ray's options for the actor of a rank."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        there = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=rank)
        return {"num_cpus": 0, "num_gpus": self.gpus, "scheduling_strategy": there}

    def place(self, rank: int) -> Place:
        """For the argument of a rank that is about to be made: rank 0 first, each time that all
        are made (again).

        Raises:
            UserError: there is no room.
        """
        import ray
        from ray.exceptions import GetTimeoutError

        from dro_rl.ranks import Place

        if rank == 0:
            if not self._group.wait(self.timeout):
                self.free()
                raise UserError(self._no_room())
            options = self.options(0) | {"num_gpus": 0}
            asked = ray.remote(free_address).options(**options).remote()
            try:
                self._address = ray.get(asked, timeout=self.timeout)
            except GetTimeoutError as error:
                self.free()
                raise UserError(self._no_room()) from error
        return Place(rank, self.ranks, self._address)

    def free(self) -> None:
        from ray.util import remove_placement_group

        remove_placement_group(self._group)

    def _no_room(self) -> str:
        import ray

        kind, each = ("GPU", self.gpus) if self.gpus else ("CPU", 1)
        there = ray.cluster_resources().get(kind, 0)
        return (
            f"{self.role}: no room for its {self.ranks} ranks within {self.timeout:.0f} s: each "
            f"takes {each:g} {kind}, and the cluster has {there:g} in all (`ray status` shows what "
            "is free). Lower the policy's ranks, add machines, or raise cluster.start_timeout"
        )


def free_address() -> str:
    """Where ranks may meet on this machine."""
    import ray.util

    with socket.socket() as free:
        free.bind(("", 0))
        return f"tcp://{ray.util.get_node_ip_address()}:{free.getsockname()[1]}"


def gpu_shares(processes: int, ranks: int, gpus: int, taken: int = 0) -> tuple[float, float]:
    """Of a rank, and of every other process, so that all of them fit.

    Args:
        processes: all of a run that share GPUs.
        ranks: those among them that belong to learners of several.
        taken: GPUs that others have for themselves.
    Raises:
        UserError: there are not as many GPUs as ranks, or as are taken, and one more.
    """
    if not gpus:
        return 0.0, 0.0
    gpus -= taken
    if gpus < 1:
        raise UserError(
            f"rollout.tensor_parallel: the engines take {taken} GPUs for themselves, the other "
            f"processes need one or more, and there are {gpus + taken}: lower it or "
            "rollout.workers, or add machines"
        )
    if not ranks:
        share = 1 / math.ceil(processes / gpus)
        return share, share
    if ranks > gpus:
        raise UserError(
            f"selector.ranks and generator.ranks: {ranks} processes need a GPU each, and there "
            f"are {gpus}{' left by the engines' * (taken > 0)}: lower them, or add machines"
        )
    others = processes - ranks
    if ranks < gpus:
        return 1.0, 1 / math.ceil(others / (gpus - ranks))
    return _RANK_SHARE, (1 - _RANK_SHARE) / math.ceil(others / gpus)
