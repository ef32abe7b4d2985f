"""The processes of one learner, its ranks: how they meet, talk and divide what there is to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from dro_rl.policy import causal_lm, sharding
from dro_rl.sections.policy import PolicySection

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Place:
    """One of `size` processes, and where all of them meet: tcp://host:port, on rank 0's machine."""

    rank: int
    size: int
    address: str


class Ranks:
    """The group that a process belongs to; without a place, it is alone.

    Args:
        place: this process's.
        timeout: seconds after which a call that not all ranks made fails.
    """

    def __init__(self, place: Place | None = None, timeout: float = 3600) -> None:
        self.rank, self.size = (place.rank, place.size) if place else (0, 1)
        if place is None or self.size == 1:
            return
        gpu = torch.cuda.is_available()
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if gpu else "gloo",
            init_method=place.address,
            rank=place.rank,
            world_size=place.size,
            timeout=timedelta(seconds=timeout),
        )

    def load_model(self, section: PolicySection, name: str, *, training: bool) -> Any:
        """See `causal_lm.load_model`; one that is to be divided stays on the CPU until then."""
        device = None if self.size == 1 else "cpu"
        return causal_lm.load_model(section, name, training=training, device=device)

    def divide(self, model: Any, section: PolicySection) -> None:
        """Cut a model among the ranks, in place; it has to be the same on all of them."""
        if self.size > 1:
            sharding.shard(model, bfloat16=section.dtype == "bfloat16")

    def gather(self, mine: T) -> list[T]:
        """What every rank gives, by rank. All ranks have to call it."""
        if self.size == 1:
            return [mine]
        everyones: list[T] = [mine] * self.size
        dist.all_gather_object(everyones, mine)
        return everyones

    def add(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over ranks. All ranks have to call it."""
        if self.size > 1:
            dist.all_reduce(tensor)


ALONE = Ranks()


def shares(costs: Sequence[int], n: int) -> list[list[int]]:
    """Numbers of the items for each of n ranks, in order: the dearest item first, to the rank that
    has least so far, so that no rank has more than the mean and one item."""
    loads, found = [0] * n, [list[int]() for _ in range(n)]
    for item in sorted(range(len(costs)), key=lambda i: -costs[i]):
        least = min(range(n), key=loads.__getitem__)
        loads[least] += costs[item]
        found[least].append(item)
    return [sorted(items) for items in found]
