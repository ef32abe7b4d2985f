"""The actor that holds a worker, and answers for it while the worker is busy.

It has two threads: one makes the worker and runs its calls one after the other, the other answers
`pulse` and `stack` meanwhile. The group `WATCH` of Ray's actor options is that second thread.
"""

from __future__ import annotations

import faulthandler
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dro_rl import hardware
from dro_rl.hardware import Device, Memory
from dro_rl.libraries import quiet_libraries

WATCH = "watch"


@dataclass(frozen=True, slots=True)
class Pulse:
    """For how long the worker's call has run, and for how long it has not used the processor [s];
    0 between calls."""

    running: float
    still: float


class Host:
    """Makes the worker in a call of its own, because an error in an actor's constructor loses its
    type on the way to the driver."""

    def __init__(self) -> None:
        quiet_libraries()  # a head that was started elsewhere has another environment
        self.worker: Any = None
        self._motion: Motion | None = None  # of the call that runs

    # --- the worker's own thread ------------------------------------------------------------------

    def make(self, cls: type, args: tuple) -> None:
        with self._moving():
            self.worker = cls(*args)

    def ready(self) -> Any:
        return self.call("ready", ())

    def call(self, method: str, args: tuple) -> Any:
        import ray

        # Not yet moving: a thread that waits for a slow network uses no processor.
        here = [ray.get(a) if isinstance(a, ray.ObjectRef) else a for a in args]
        with self._moving():
            return getattr(self.worker, method)(*here)

    def leave(self, method: str) -> tuple[None, Any]:
        """The value as a second object, so that the caller learns of errors from the first and need
        not fetch it."""
        return None, self.call(method, ())

    def device(self) -> Device:
        return hardware.device()

    def memory(self) -> Memory:
        return hardware.memory()

    @contextmanager
    def _moving(self) -> Iterator[None]:
        self._motion = Motion(threading.get_ident())
        try:
            yield
        finally:
            self._motion = None

    # --- the thread that watches it ---------------------------------------------------------------

    def pulse(self) -> Pulse:
        motion = self._motion
        return motion.pulse() if motion else Pulse(0.0, 0.0)

    def stack(self) -> str:
        """What every thread of this process is doing."""
        with tempfile.TemporaryFile() as file:
            faulthandler.dump_traceback(file, all_threads=True)
            file.seek(0)
            return file.read().decode(errors="replace")


class Motion:
    """Whether a thread uses the processor. One that waits for a reply or a lock uses none at all.

    Args:
        thread: its `threading.get_ident()`.
    """

    def __init__(self, thread: int) -> None:
        self._clock = time.pthread_getcpuclockid(thread)
        self._used, self._since = time.clock_gettime(self._clock), time.monotonic()
        self._moved = self._since

    def pulse(self) -> Pulse:
        """How it looks now; it is judged by what it did since the last look."""
        now, used = time.monotonic(), time.clock_gettime(self._clock)
        if used > self._used:
            self._used, self._moved = used, now
        return Pulse(now - self._since, now - self._moved)
