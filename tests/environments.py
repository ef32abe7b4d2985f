"""Python environments of their own: those that are there, and stand-ins."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import pytest

from dro_rl.errors import UserError
from dro_rl.retrieval.environments import find_python

VERSIONS = {
    "ragatouille": "0.0.9.post2",
    "colbert-ai": "0.2.22",
    "pylate": "1.6.0",
    "sentence-transformers": "5.3.0",
    "python": platform.python_version(),
}


def needs_environment(*kinds: str) -> pytest.MarkDecorator:
    """Skips a test where an environment has not been made."""
    missing = [kind for kind in kinds if not _is_made(kind)]
    reason = "; ".join(f"no .venv-{kind}: make {kind}-env" for kind in missing)
    return pytest.mark.skipif(bool(missing), reason=reason)


def _is_made(kind: str) -> bool:
    try:
        find_python(kind, f".venv-{kind}/bin/python")
    except UserError:
        return False
    return True


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
