"""Runs as processes: start `dro-rl train`, end it, and read from its log why it failed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection

import yaml

from dro_rl.comparison.runs import Run, State
from dro_rl.tracking.run_directory import write_text

# -P: the working folder is no place to import from, as it is none for the installed command.
_TRAIN = (sys.executable, "-P", "-c", "from dro_rl.cli import main; main()", "train")
_GRACE = 15.0  # seconds that a process has to end by itself

Process = subprocess.Popen[bytes]


def start(run: Run, state: State, lock: int) -> Process:
    """Begin a run, or continue it where it is resumable.

    Args:
        lock: a file descriptor that the process keeps open as long as it lives.
    """
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(run.recipe.resolved(), sort_keys=False, allow_unicode=True)
    write_text(run.recipe_file, text)
    resumes = state == "resumable"
    words = ("--resume", str(run.folder)) if resumes else (str(run.recipe_file),)
    # What overrides say is in the recipe already.
    environment = {k: v for k, v in os.environ.items() if k != "DRO_RL_OVERRIDES"}
    with run.log.open("ab" if resumes else "wb") as log:
        return subprocess.Popen(
            [*_TRAIN, *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C in the terminal reaches it through `end` alone
            pass_fds=(lock,),
        )


def end(processes: Collection[Process]) -> None:
    """End processes with all that they started; checkpoints are whole at any moment."""
    for process in processes:
        _signal(process, signal.SIGTERM)
    deadline = time.monotonic() + _GRACE
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            _signal(process, signal.SIGKILL)
            process.wait()


def _signal(process: Process, number: signal.Signals) -> None:
    if process.poll() is None:
        os.killpg(process.pid, number)


def last_error(log: str, code: int) -> str:
    """Why a command ended with `code`, from all it said: a user's error whole, else the last line.

    A negative code is the signal that ended it.
    """
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    lines = [line for line in log.splitlines() if line.strip()]
    told = [i for i, line in enumerate(lines) if line.startswith("error: ")]
    if code == 2 and told:
        return "\n".join(lines[told[-1] :]).removeprefix("error: ")
    return lines[-1] if lines else f"exit code {code}, without a word"
