"""One command at a time works on a run: two would write over each other's files.

RUN/at-work.json says who does. One that was killed leaves it behind: whether its process is still
there is known on the same machine; of another machine's, the file is touched as long as it is.
"""

from __future__ import annotations

import functools
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from dro_rl.ending import at_any_end
from dro_rl.errors import UserError

Trainer = TypeVar("Trainer", bound=Callable[..., Any])

NAME = "at-work.json"
_BEAT = 5.0  # seconds between touches
_PATIENCE = 30.0  # without a touch, after which another machine's process counts as gone


@dataclass(frozen=True, slots=True)
class Process:
    """One process of all machines: `boot` is this start of its machine and its space of process
    ids, `born` its start; both are empty where there is no /proc."""

    pid: int
    host: str
    boot: str
    born: str

    @staticmethod
    def this() -> Process:
        pid = os.getpid()
        return Process(pid, socket.gethostname(), _boot(), _born(pid))

    def is_here(self) -> bool | None:
        """Whether it is alive; None where that cannot be seen from here."""
        if not self.boot or self.boot != _boot():
            return None
        return self.born == _born(self.pid)


def _boot() -> str:
    with suppress(OSError):
        machine = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{machine} {os.readlink('/proc/self/ns/pid')}"
    return ""


def _born(pid: int) -> str:
    """Empty for a process that is gone, or that nobody has buried yet."""
    with suppress(OSError):
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if state == "Z" else fields[18]
    return ""


def alone(train: Trainer) -> Trainer:
    """Have a trainer of (recipe, console, run to go on with) be the only one at work on its run."""

    @functools.wraps(train)
    def trains_alone(recipe: Any, console: Any, resume: Any = None) -> Any:
        place = Path(recipe.tracking.run_dir).expanduser().absolute()
        with at_work(place, console.say):
            return train(recipe, console, resume)

    return cast(Trainer, trains_alone)


@contextmanager
def at_work(
    run: Path, say: Callable[[str], object], *, placed_by: str = "tracking.run_dir"
) -> Iterator[None]:
    """Hold a run for the block; leaves no trace of its own.

    Args:
        run: its folder, which need not be there.
        say: is told of a wait.
        placed_by: the setting that would have put it elsewhere, for the message.
    Raises:
        UserError: another command is at work on it, or the folder cannot be written.
    """
    path, made = run / NAME, [p for p in (run, *run.parents) if not p.exists()]
    try:
        run.mkdir(parents=True, exist_ok=True)
        while not _taken(path):
            _clear(path, _require_gone(path, say, placed_by))
    except OSError as error:
        _remove(made)
        raise UserError(
            f"{run}: cannot be written ({error.strerror}): give a writable place with "
            f"{placed_by}=..."
        ) from error
    ended = threading.Event()
    threading.Thread(target=_touch, args=(path, ended), daemon=True).start()

    def leave() -> None:
        ended.set()
        with suppress(OSError):  # a disk that takes no more has been told of
            _clear(path, _own())
        _remove(made)

    with at_any_end(leave):
        yield


def _taken(path: Path) -> bool:
    """Whether the file was not there, and now says that this process is at work."""
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(_own())
    except OSError:
        path.unlink()
        raise
    return True


def _own() -> str:
    return json.dumps(asdict(Process.this())) + "\n"


def _clear(path: Path, content: str) -> None:
    """Remove a file of that content; one that another command has put there meanwhile stays."""
    aside = path.with_name(f"{path.name}.{os.getpid()}")
    with suppress(FileNotFoundError):
        os.rename(path, aside)  # so that only one of two commands removes it
        if _content(aside) != content:
            os.link(aside, path)
        aside.unlink()


def _require_gone(path: Path, say: Callable[[str], object], placed_by: str) -> str:
    """Return the file's content once whoever wrote it is known not to be at work any more."""
    content = _content(path)
    holder = _read(content)
    here = holder.is_here() if holder else None
    if here is None:
        here = _is_touched(path, say)
    if here:
        who = f"process {holder.pid} on {holder.host}" if holder else "another process"
        raise UserError(
            f"{path.parent}: {who} is at work on this run: wait for its end or stop it, or give "
            f"another place with {placed_by}=..."
        )
    return content


def _content(path: Path) -> str:
    """Empty for a file that is gone."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def _read(content: str) -> Process | None:
    """None of a file that is gone, or was not written to its end."""
    try:
        return Process(**json.loads(content))
    except (ValueError, TypeError):
        return None


def _is_touched(path: Path, say: Callable[[str], object]) -> bool:
    """By changes of its time, not by its age: clocks of machines differ."""
    with suppress(FileNotFoundError):
        before, until = path.stat().st_mtime_ns, time.monotonic() + _PATIENCE
        say(f"{path}: left by another machine: waiting {_PATIENCE:g} s for a sign of life")
        while time.monotonic() < until:
            time.sleep(_BEAT / 5)
            if path.stat().st_mtime_ns != before:
                return True
    return False


def _touch(path: Path, ended: threading.Event) -> None:
    while not ended.wait(_BEAT):
        with suppress(OSError):
            os.utime(path)


def _remove(made: list[Path]) -> None:
    """Folders that were made for nothing, the innermost first."""
    for folder in made:
        try:
            folder.rmdir()
        except OSError:
            return
