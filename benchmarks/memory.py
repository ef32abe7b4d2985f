"""Peak memory of what a process does, beyond what it holds before."""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Callable
from typing import Any


def peak_growth(make: Callable[[], Callable[[], None]]) -> float:
    """MiB by which resident memory grows at its peak when what `make` returns is called twice, in
    a process of its own.

    The process is forked: ask before anything is computed here, since memory that was used and
    freed would not count as growth.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(False)
    process = context.Process(target=_measure, args=(make, sender))
    process.start()
    sender.close()  # so that the end of a process that failed is seen
    grown = receiver.recv()
    process.join()
    return grown


def _measure(make: Callable[[], Callable[[], None]], sender: Any) -> None:
    work = make()
    before = _peak()
    work()
    work()
    sender.send(_peak() - before)


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
