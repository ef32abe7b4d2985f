"""Seconds until the command line answers, in a process of its own each time.

    python benchmarks/startup.py

Writes results/startup.json and .md beside this file, and exits with 1 where a limit is exceeded.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.timing import in_turns, table, write_results  # noqa: E402

LIMITS = {"--help": 0.5, "check recipes/demo.yaml": 1.5}  # seconds


def run(arguments: str) -> None:
    command = [str(Path(sys.executable).with_name("dro-rl")), *arguments.split()]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    if not done.stdout:
        raise RuntimeError(f"dro-rl {arguments} said nothing")


def main() -> None:
    times = in_turns({arguments: lambda a=arguments: run(a) for arguments in LIMITS})
    rows = [[f"dro-rl {a}", str(times[a]), f"{limit}"] for a, limit in LIMITS.items()]
    write_results(
        "startup",
        {"times": times, "limits": LIMITS},
        ["Files are in the system's cache after the first turn:", table(["", "s", "limit"], rows)],
    )
    if any(times[a].median > limit for a, limit in LIMITS.items()):
        sys.exit(1)


if __name__ == "__main__":
    main()
