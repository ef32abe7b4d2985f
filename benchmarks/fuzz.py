"""Fuzzing: ten thousand cases of everything that comes from outside, and what they ended in.

    python benchmarks/fuzz.py [TARGET ...] [--cases 10000] [--seed 0]

The cases are those of tests/fuzz_targets.py; tests/fuzzing.py says what one may end in. A target
that finds something else stops there, and the smallest such case is shown. Without TARGET all run.
Each has a row in results/fuzz.json and fuzz.md, which the next run of it replaces, and which is
written after every thousand cases; a thousand are drawn from one seed, the next from the next.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import hypothesis
from timing import table

from dro_rl.libraries import quiet_libraries

_RESULTS = Path(__file__).resolve().parent / "results" / "fuzz.json"
_PART = 1000  # cases of one seed: hypothesis slows down as it remembers more of them
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
    found = False
    for name in asked.target or known:
        for row in run(known[name], asked.cases, asked.seed):
            found |= row["finding"] is not None
            write(row, [*known])
    sys.exit(found)


def run(target: Any, cases: int, seed: int) -> Iterator[dict[str, Any]]:
    """One target's row, as far as it has come."""
    from tests.fuzzing import Tally, drive

    tally, finding, start = Tally(), None, time.monotonic()
    parts = [_PART] * (cases // _PART) + [cases % _PART] * (cases % _PART > 0)
    for number, some in enumerate(parts):
        with tempfile.TemporaryDirectory() as folder:
            try:
                drive(target, some, Path(folder), tally, seed + number)
            except Exception as error:
                notes = getattr(error, "__notes__", [])
                finding = "\n".join([f"{type(error).__name__}: {error}", *notes])
                print(f"{target.name}: {finding}", file=sys.stderr)
        row = {
            "target": target.name,
            "cases": tally.results + tally.refused,
            "results": tally.results,
            "refused": tally.refused,
            "finding": finding,
            "seeds": [seed, seed + number],
            "seconds": round(time.monotonic() - start, 1),
        }
        print(row, flush=True)
        yield row
        if finding:
            return


def write(row: dict[str, Any], order: list[str]) -> None:
    """Put a row into results/fuzz.json, and write fuzz.md anew."""
    kept = json.loads(_RESULTS.read_text())["targets"] if _RESULTS.exists() else []
    rows = [r for r in kept if r["target"] in order and r["target"] != row["target"]]
    rows = sorted([*rows, row], key=lambda r: order.index(r["target"]))
    about = {
        "machine": f"{os.cpu_count()} cores {platform.machine().replace('_', '-')}",
        "hypothesis": hypothesis.__version__,
    }
    _RESULTS.write_text(json.dumps({**about, "targets": rows}, indent=1) + "\n")
    head = "`fuzz.py`; " + "; ".join(f"{k} {v}" for k, v in about.items())
    lines = [[r["target"], *(f"{r[k]:,}" for k in ("cases", "results", "refused"))] for r in rows]
    for line, r in zip(lines, rows, strict=True):
        line += ["1" if r["finding"] else "0", _seeds(r)]
    columns = ["what", "cases", "results", "clear messages", "anything else", "seeds"]
    _RESULTS.with_suffix(".md").write_text(f"{head}.\n\n{table(columns, lines)}\n")


def _seeds(row: dict[str, Any]) -> str:
    first, last = row["seeds"]
    return str(first) if first == last else f"{first}-{last}"


if __name__ == "__main__":
    main()
