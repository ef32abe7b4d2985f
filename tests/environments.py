"""Stand-ins for a Python environment of its own."""

from __future__ import annotations

import json
import platform
from pathlib import Path

VERSIONS = {
    "ragatouille": "0.0.9.post2",
    "colbert-ai": "0.2.22",
    "pylate": "1.6.0",
    "sentence-transformers": "5.3.0",
    "python": platform.python_version(),
}


def stand_in(tmp_path: Path, body: str) -> str:
    """A Python that does something else."""
    path = tmp_path / "python"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def complete(tmp_path: Path, **versions: str) -> str:
    """A Python that has what is needed, by what it says."""
    import ray

    told = json.dumps({**VERSIONS, "ray": ray.__version__, **versions})
    return stand_in(tmp_path, f"echo '{told}'")
