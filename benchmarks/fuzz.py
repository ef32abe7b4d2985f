"""Fuzzing: ten thousand cases of everything that comes from outside, and what they ended in.

    python benchmarks/fuzz.py [TARGET ...] [--cases 10000] [--seed 0]

The cases are those of tests/fuzz_targets.py, where it says what one may end in. A target that finds
something else stops there, and the smallest such case is shown. Without TARGET all run, and
results/fuzz.json and fuzz.md are written.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from dro_rl.libraries import quiet_libraries

_MEMORY = 12 * 2**30  # bytes of address space: a case that takes it all is a finding


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", nargs="*")
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    quiet_libraries()
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    from datasets.utils.logging import set_verbosity
    from transformers.utils import logging

    from tests.fuzz_targets import TARGETS

    set_verbosity(100)
    logging.set_verbosity(100)
    logging.disable_progress_bar()
    known = {target.name: target for target in TARGETS}
    rows = [run(known[name], asked.cases, asked.seed) for name in asked.target or known]
    if not asked.target:
        write(rows, asked.cases, asked.seed)
    if any(row["finding"] for row in rows):
        sys.exit(1)


def run(target: Any, cases: int, seed: int) -> dict[str, Any]:
    """One target's row."""
    from tests.fuzz_targets import Tally, drive

    tally, finding, start = Tally(), None, time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        try:
            drive(target, cases, Path(folder), tally, seed)
        except Exception as error:
            finding = "\n".join([f"{type(error).__name__}: {error}", *error.__notes__])
            print(f"{target.name}: {finding}", file=sys.stderr)
    row = {
        "target": target.name,
        "cases": tally.results + tally.refused,
        "results": tally.results,
        "refused": tally.refused,
        "finding": finding,
        "seconds": round(time.monotonic() - start, 1),
    }
    print(row, flush=True)
    return row


def write(rows: list[dict[str, Any]], cases: int, seed: int) -> None:
    """results/fuzz.json and fuzz.md."""
    import json

    import hypothesis
    from timing import RESULTS, table

    about = {
        "machine": f"{os.cpu_count()} cores {platform.machine().replace('_', '-')}",
        "hypothesis": hypothesis.__version__,
        "cases": cases,
        "seed": seed,
    }
    found = {**about, "targets": rows}
    (RESULTS / "fuzz.json").write_text(json.dumps(found, indent=1) + "\n")
    head = "`fuzz.py`; " + "; ".join(f"{k} {v}" for k, v in about.items())
    shown = [
        [
            row["target"],
            f"{row['cases']:,}",
            f"{row['results']:,}",
            f"{row['refused']:,}",
            "1" if row["finding"] else "0",
            f"{row['seconds']:.0f}",
        ]
        for row in rows
    ]
    columns = ["what", "cases", "results", "clear messages", "anything else", "seconds"]
    (RESULTS / "fuzz.md").write_text(f"{head}.\n\n{table(columns, shown)}\n")


if __name__ == "__main__":
    main()
