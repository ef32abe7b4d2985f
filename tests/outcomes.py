"""What a run leaves, to compare with another run bit by bit."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tests.commands import files, metrics

_TIMED = ("time/", "share/", "tokens_per_second/", "mfu/", "memory/", "gpu_memory/")


def outcome(run: Path) -> dict[str, Any]:
    """All that a run leaves but the time it took and its recipe."""
    contents = {k: v for k, v in files(run).items() if not k.startswith("tensorboard/")}
    for name in ("recipe.yaml", "metrics.jsonl", "report.html"):
        contents.pop(name, None)
    left: dict[str, Any] = {}
    for name, content in contents.items():
        if re.fullmatch(r"evaluation/.*\.json", name):
            left[name] = _without_time(json.loads(content))
        elif name.endswith(".parquet"):
            left[name] = pq.read_table(run / name).to_pylist()
        elif ".learner" in name or name.endswith("manifest.json"):
            left[name] = "there"  # what optimisers hold shows in the next iteration's weights
        else:
            left[name] = content
    left["metrics"] = [_without_time(row) for row in metrics(run)]
    return left


def differences(run: Path, other: Path) -> list[str]:
    """What differs between two runs, by name."""
    ours, theirs = outcome(run), outcome(other)
    apart = [f"{name}: in one alone" for name in ours.keys() ^ theirs.keys()]
    return sorted(apart) + [n for n in ours if n in theirs and ours[n] != theirs[n]]


def assert_equal(run: Path, other: Path) -> None:
    """Both runs left the same."""
    assert differences(run, other) == []


def _without_time(row: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in row.items() if not k.startswith(_TIMED) and "seconds" not in k}
