"""Several arms, several seeds: every run is a `dro-rl train` of its own, with one report of all."""

from __future__ import annotations

import fcntl
import signal
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from dro_rl.comparison.processes import Process, end, last_error, start
from dro_rl.comparison.report import Failure, Report
from dro_rl.comparison.runs import Result, Run, State, read_result, runs_of
from dro_rl.comparison.spec import Comparison
from dro_rl.comparison.tables import headline
from dro_rl.errors import UserError
from dro_rl.tracking.console import Console

_POLL = 0.1  # seconds between looks at the processes


def run_comparison(comparison: Comparison, command: str, jobs: int, console: Console) -> bool:
    """Run what has not been run, `jobs` at a time, and report on all of it.

    Args:
        command: how the comparison was started, for the report.
    Returns:
        Whether every run has finished.
    Raises:
        UserError: a run's folder holds something else, or another command is at work on a run that
            is to begin anew, both found before the first run starts; or the output folder cannot be
            written, or another comparison is at work there.
    """
    runs = runs_of(comparison)
    with _locked(comparison.output) as lock, _ended_by_signals():
        found: dict[Run, State] = {run: run.state() for run in runs}  # all, before any is cleared
        states: dict[Run, State] = {
            run: run.clear(console.say) if state == "begun" else state
            for run, state in found.items()
        }
        finished = [read_result(run) for run, state in states.items() if state == "finished"]
        todo: list[tuple[Run, State]] = [
            (run, state) for run, state in states.items() if state != "finished"
        ]
        if finished:
            console.say(f"{len(finished)} of {len(runs)} runs had finished before")
        work = _Work(comparison, command, jobs, console, lock, todo, finished)
        work.report().write()
        work.do()
        work.report().show(console)
    return not work.failures


@dataclass
class _Work:
    """The runs at work, and what the ended ones gave."""

    comparison: Comparison
    command: str
    jobs: int
    console: Console
    lock: int
    todo: Sequence[tuple[Run, State]]
    results: list[Result]
    failures: list[Failure] = field(default_factory=list)
    working: dict[Run, tuple[Process, float]] = field(default_factory=dict)  # and when begun
    seconds: list[float] = field(default_factory=list)  # of the runs that have ended

    def report(self) -> Report:
        waiting = len(self.todo) - len(self.seconds)
        return Report(self.comparison, self.command, self.results, self.failures, waiting)

    def do(self) -> None:
        """Start the runs in order, and wait for all."""
        waiting = deque(self.todo)
        total = len(waiting)
        live = total and self.console.rich.is_terminal  # in a file there is a line a run
        bar = self.console.stage("compare", total, "runs") if live else nullcontext()
        try:
            with bar as advance:
                while waiting or self.working:
                    while waiting and len(self.working) < self.jobs:
                        run, state = waiting.popleft()
                        self.working[run] = start(run, state, self.lock), time.monotonic()
                    time.sleep(_POLL)
                    for run, (process, _) in list(self.working.items()):
                        if process.poll() is not None:
                            self._ended(run)
                            if advance:
                                advance(1)
        finally:
            end([process for process, _ in self.working.values()])

    def _ended(self, run: Run) -> None:
        process, begun = self.working.pop(run)
        took = time.monotonic() - begun
        self.seconds.append(took)
        if process.returncode == 0:
            self.results.append(read_result(run))
            said = f"{_change(self.results[-1])}, {took:.0f} s"
        else:
            error = last_error(run.log.read_text("utf-8", "replace"), process.returncode)
            self.failures.append(Failure(run, error))
            said = f"failed after {took:.0f} s: {error}"
        self.report().write()
        self.console.say(f"{run.title}: {said} ({self._progress()})")

    def _progress(self) -> str:
        done, total = len(self.seconds), len(self.todo)
        left = sum(self.seconds) / done * (total - done) / self.jobs
        about = f"{left / 60:.0f} min" if left > 90 else f"{left:.0f} s"
        return f"{done}/{total} runs" + (f", about {about} left" if done < total else "")


def _change(result: Result) -> str:
    """Where the figures were at the warm start, and where they are now."""
    first, last = result.evaluations[0], result.evaluations[-1]
    return ", ".join(
        f"{m.heading} {m.text(first[m.key])} -> {m.text(last[m.key])}"
        for m in headline([result])
        if m.key != "f1" and first.get(m.key) is not None
    )


@contextmanager
def _locked(output: Path) -> Iterator[int]:
    """Keep two comparisons out of one folder. Runs inherit the lock, so one that outlives a killed
    comparison keeps it too."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        file = (output / ".lock").open("w")
    except OSError as error:
        raise UserError(
            f"{output}: cannot be written ({error.strerror}): give a writable place with output=..."
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{output}: another comparison, or a run that one began, is at work there: wait "
                "for it, end it, or give another place with output=..."
            ) from error
        yield file.fileno()


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """What asks this process to end ends its runs too, as Ctrl-C does."""

    def leave(number: int, _: object) -> NoReturn:
        raise SystemExit(128 + number)

    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = {n: signal.getsignal(n) for n in numbers}
    for number in numbers:
        if before[number] is not signal.SIG_IGN:  # nohup
            signal.signal(number, leave)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, before[number])
