"""How a run ends before its time: it says where it stands and how to go on."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from dro_rl.durable import CannotWrite
from dro_rl.errors import UserError

_GRACE = 1.0  # seconds to end in an orderly way; `ray job stop` sends SIGKILL after 3
_LAST = 0.5  # seconds for what is then still to be done: a file system may hang
_left: list[Callable[[], object]] = []  # what is still done when that time is up


@contextmanager
def says_how_to_go_on(where: Callable[[], str]) -> Iterator[None]:
    """SIGTERM and Ctrl-C end the block with one line and exit code 143 or 130 within seconds; a
    disk that takes no more ends it with the same line after its own.

    Nothing is saved then: a run saves what it has as it goes on.

    Args:
        where: where the run stands, and the command that goes on from there.
    """
    told: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if told:
            return  # it is ending
        told.append(number)
        line = f"\nstopped by {signal.Signals(number).name}. {where()}\n"
        os.write(2, line.encode(errors="replace"))  # print may be what was interrupted
        watchdog = threading.Timer(_GRACE, _cut_short, (128 + number,))
        watchdog.daemon = True
        watchdog.start()
        raise KeyboardInterrupt  # what Ray's waits pass on

    interactive = hasattr(sys, "ps1")  # a notebook: it goes on after an interrupt
    if interactive or threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return
    before = {n: signal.signal(n, stop) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    except CannotWrite as error:
        raise UserError(f"{error}. {where()}") from error
    except KeyboardInterrupt:
        if not told:
            raise
        raise SystemExit(128 + told[0]) from None
    finally:
        if not told:  # a second signal must not cut the ending short
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def at_any_end(do: Callable[[], object]) -> Iterator[None]:
    """`do` is called when the block ends, and also by a signal after which it does not end in
    time: then by another thread, for half a second at most."""
    _left.append(do)
    try:
        yield
    finally:
        try:
            do()
        finally:
            _left.remove(do)


def _cut_short(code: int) -> None:
    try:
        last = threading.Thread(target=_do_what_is_left, daemon=True)
        last.start()
        last.join(_LAST)
    finally:
        os._exit(code)


def _do_what_is_left() -> None:
    """The innermost first, as their blocks would have ended."""
    for do in reversed(_left):
        with suppress(Exception):  # the others are still to be done
            do()
