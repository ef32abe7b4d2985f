"""The make targets that README names do what it says."""

import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("target", "command"),
    [
        ("demo", "dro-rl train recipes/demo.yaml"),
        ("paper-demo", "dro-rl compare recipes/paper/"),
        ("colbert-env", "scripts/retrieval_env.sh colbert"),
        ("pylate-env", "scripts/retrieval_env.sh pylate"),
        ("bench", "benchmarks/$f.py"),
        ("unit", "pytest tests/unit"),
    ],
)
def test_a_target_runs_its_command(target, command):
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr  # no target is there twice
    assert command in done.stdout
