"""Peak memory of what a process does, and the cases on which its estimate is held against it."""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

ALLOWED = 0.2  # that an estimate may be off by
DOCUMENTS, SELECTED, SAMPLES = 8, 2, 4
LORA: dict[str, Any] = {"lora": {"rank": 16}}
CHECKPOINTED = {"gradient_checkpointing": True}
BFLOAT16 = {"dtype": "bfloat16"}


def peak() -> float:
    """The most resident memory that this process has had [GiB]."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def in_own_process(work: Callable[..., T], *args: Any) -> T:
    """What work(*args) gives in a process of its own.

    The process is forked: ask before anything is computed here, since memory that was used and
    freed would not count as growth.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(False)
    process = context.Process(target=_send, args=(sender, work, args))
    process.start()
    sender.close()  # so that the end of a process that failed is seen
    found = receiver.recv()
    process.join()
    return found


def _send(sender: Any, work: Callable[..., Any], args: tuple) -> None:
    sender.send(work(*args))


def peak_growth(make: Callable[[], Callable[[], None]]) -> float:
    """MiB by which resident memory grows at its peak when what `make` returns is called twice, in
    a process of its own; see `in_own_process`."""
    return in_own_process(_growth, make) * 2**10


def _growth(make: Callable[[], Callable[[], None]]) -> float:
    work = make()
    before = peak()
    work()
    work()
    return peak() - before
