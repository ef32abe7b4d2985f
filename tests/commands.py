"""The installed command line as a user runs it, and readers of the run directory it leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Result:
    """What a command said and how it ended."""

    code: int
    out: str
    err: str
    pid: int

    def succeeded(self) -> Result:
        assert self.code == 0, f"exit code {self.code}\n{self.out}\n{self.err}"
        return self

    def refused(self, *told: str) -> Result:
        """It ended as a user's error does: one message with all of `told`, no traceback."""
        assert self.code == 2, f"exit code {self.code}\n{self.out}\n{self.err}"
        assert "error: " in self.err and "Traceback" not in self.out + self.err
        for words in told:
            assert words in self.err
        return self


def environment(**variables: str) -> dict[str, str]:
    """This process's, less what would change a command, with the environment's bin on PATH."""
    kept = {k: v for k, v in os.environ.items() if k not in ("DRO_RL_OVERRIDES", "RAY_ADDRESS")}
    path = f"{BIN}{os.pathsep}{kept.get('PATH', '')}"
    return kept | {"PATH": path, "HF_HUB_OFFLINE": "1"} | variables


def start(*words: str | Path, cwd: Path = ROOT, **variables: str) -> subprocess.Popen[str]:
    """Begin `dro-rl` in the checkout or another folder, without a terminal."""
    return subprocess.Popen(
        [str(BIN / "dro-rl"), *map(str, words)],
        cwd=cwd,
        env=environment(**variables),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def dro_rl(*words: str | Path, timeout: float = 280, **variables: str) -> Result:
    """Run `dro-rl` to its end."""
    process = start(*words, **variables)
    try:
        out, err = process.communicate(timeout=timeout)
    except BaseException:
        process.kill()
        process.wait()
        raise
    return Result(process.returncode, out, err, process.pid)


# --- the command line in this process -------------------------------------------------------------


def run_here(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Run `dro-rl` in this process, in a tenth of the time: its exit code, output and errors."""
    from dro_rl.cli import main

    arguments, variables = sys.argv, dict(os.environ)
    sys.argv = ["dro-rl", *words]
    capsys.readouterr()
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.argv = arguments
        os.environ.clear()
        os.environ.update(variables)
    out, err = capsys.readouterr()
    return code, out, err


def refused(result: tuple[int, str, str], *told: str) -> None:
    """`Result.refused` of `run_here`."""
    code, out, err = result
    assert code == 2, (code, out, err)
    assert err.count("error:") == 1 and "Traceback" not in out + err, err
    assert err.startswith("error: ") or "\nerror: " in err, err
    for part in told:
        assert part in err, (part, err)


# --- reading a run directory ----------------------------------------------------------------------


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def steps(run: Path) -> list[dict[str, Any]]:
    return [row for row in metrics(run) if "step" in row]


def iterations(run: Path) -> list[dict[str, Any]]:
    return [row for row in metrics(run) if "step" not in row]


def evaluation(run: Path, iteration: int) -> dict[str, Any]:
    return json.loads((run / "evaluation" / f"iteration-{iteration:04d}.json").read_text())


def rollouts(run: Path, iteration: int) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    return pq.read_table(run / "rollouts" / f"iteration-{iteration:04d}.parquet").to_pylist()


def checkpoint(run: Path, iteration: int) -> Path:
    return run / "checkpoints" / f"iteration-{iteration:04d}"


def files(folder: Path) -> dict[str, bytes]:
    """Every file under a folder with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
