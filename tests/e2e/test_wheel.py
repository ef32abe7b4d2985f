"""The wheel works away from the checkout: recipes, rewards and models travel in it."""

import shutil
import subprocess
import sys

import pytest

from tests.commands import ROOT, environment

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder that the wheel, built from a copy of the sources, is unpacked in."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("dro_rl", "recipes", "rewards"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    target = tmp_path_factory.mktemp("installed")
    python = (sys.executable, "-m")
    build = [*python, "build", "--wheel", "--no-isolation", str(source), "-o", str(source)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = source.glob("*.whl")
    options = ["--no-deps", "--no-index", "--target", str(target), str(wheel)]
    subprocess.run([*python, "pip", "install", *options], check=True, capture_output=True)
    return target


def run(installed, folder, *words):
    code = "from dro_rl.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        cwd=folder,
        env=environment(PYTHONPATH=str(installed)),
        capture_output=True,
        text=True,
        check=False,
    )


def test_recipes_and_rewards_are_found_by_name(installed, tmp_path):
    result = run(installed, tmp_path, "check", "demo.yaml")
    assert result.returncode == 0, result.stderr
    assert f"use: {installed / 'dro_rl' / 'rewards' / 'answer_likelihood.py'}" in result.stdout
    assert "unknown" not in result.stdout  # so the sizes of the models were found as well


def test_the_demo_trains_from_the_wheel(installed, tmp_path):
    small = (
        "training.iterations=1",
        "training.questions_per_iteration=16",
        "data.train_questions=16",
    )
    result = run(
        installed,
        tmp_path,
        *("train", "recipes/demo.yaml", *small, "data.evaluation_questions=8"),
        *("cluster.mode=local", "rollout.engine=transformers"),
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "runs/demo/checkpoints/iteration-0001/selector/config.json").is_file()
