"""Runs the cases of a fuzzing target.

A case ends in a result or in a UserError that says something; in nothing else, in time, and with
no file that was not there before.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dro_rl.errors import UserError

_SECONDS = 120  # for one case, however busy the machine


@dataclass(frozen=True)
class Target:
    """`run(folder, case)` in a folder that `prepare` filled once."""

    name: str
    cases: st.SearchStrategy[Any]
    run: Callable[[Path, Any], object]
    prepare: Callable[[Path], object] = lambda folder: None
    cases_in_ci: int = 200


@dataclass
class Tally:
    """How the cases of a target ended."""

    results: int = 0
    refused: int = 0


def drive(target: Target, cases: int, folder: Path, tally: Tally, seed: int | None = None) -> None:
    """Run so many cases, and count how they end; without a seed always the same ones.

    Raises:
        Exception: what a case ended in that is no UserError, with the case in its notes.
    """
    target.prepare(folder)
    before = _listing(folder)

    @settings(
        max_examples=cases,
        derandomize=seed is None,
        database=None,
        deadline=None,  # `_in_time` ends a case that hangs, and does not wait for it
        suppress_health_check=list(HealthCheck),
    )
    @given(target.cases)
    def check(case: Any) -> None:
        with _in_time(_SECONDS):
            try:
                target.run(folder, case)
                tally.results += 1
            except UserError as error:
                assert str(error).strip()
                tally.refused += 1
        assert _listing(folder) == before, "something was left behind"

    if seed is not None:
        from hypothesis import seed as seeded

        check = seeded(seed)(check)
    check()


@contextmanager
def _in_time(seconds: float) -> Iterator[None]:
    def ring(*_: Any) -> None:
        raise TimeoutError(f"a case took more than {seconds:g} s")

    previous = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def _listing(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@contextmanager
def written(path: Path, content: bytes) -> Iterator[None]:
    """The file with this content, for the block; afterwards as it was."""
    old = path.read_bytes() if path.exists() else None
    path.write_bytes(content)
    try:
        yield
    finally:
        if old is None:
            path.unlink()
        else:
            path.write_bytes(old)
