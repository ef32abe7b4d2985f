"""The Python API: docs/python.md runs as it is written, and importing it takes nothing heavy."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import ROOT, environment

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def python(code: str, folder: Path) -> str:
    """What a program prints, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_example_of_the_docs(tmp_path):
    (example,) = re.findall(r"^```python\n(.*?)^```", read("docs/python.md"), re.M | re.S)
    assert len(example.splitlines()) <= 32
    told = python(example, tmp_path)
    assert re.search(r"^2 EM \d\.\d\d bound -\d", told, re.M)
    assert re.search(r" -> \w+", told)
    run = tmp_path / "runs" / "notebook"
    assert (run / "checkpoints" / "iteration-0002" / "selector" / "config.json").is_file()
    begins = example.partition("\nfor row")[0].replace("runs/notebook", str(run))
    assert "iteration 1/2" not in python(begins, tmp_path)  # a cell that is run again goes on


def test_importing_it_is_light(tmp_path):
    code = (
        "import sys; from dro_rl import Recipe; import dro_rl; dro_rl.train; dro_rl.evaluate\n"
        "recipe = Recipe.load('demo.yaml', 'training.iterations=3')\n"
        "print(recipe.training.iterations, *({'torch', 'ray', 'vllm'} & {*sys.modules}))"
    )
    assert python(code, tmp_path) == "3\n"


def test_an_interrupt_leaves_a_notebook_alive(tmp_path):
    """Interactive Python, as notebooks are, has `sys.ps1`: its signals stay its own."""
    code = """
import os, signal, sys, time
sys.ps1 = ">>> "
from dro_rl.ending import says_how_to_go_on
try:
    with says_how_to_go_on(lambda: "told"):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
except KeyboardInterrupt:
    time.sleep(1.5)  # longer than a command that was stopped lives
    print("alive")
"""
    assert python(code, tmp_path) == "alive\n"


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")
