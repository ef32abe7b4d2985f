"""README and docs: the commands of other programs name what is there, with options they take."""

from __future__ import annotations

import os
import tomllib
from importlib.metadata import entry_points
from typing import Any

import pytest
import typer.main

from dro_rl.cli import app
from dro_rl.recipe_file import load_recipe
from tests.documents import ROOT, Command, commands

pytestmark = pytest.mark.unit

ALL = commands()


def of(*programs: str) -> Any:
    return pytest.mark.parametrize("command", [c for c in ALL if c.program in programs], ids=str)


@of("ray")
def test_a_ray_command_has_its_options_and_submits_what_can_be_run(command):
    from ray.scripts.scripts import cli

    group: Any = cli
    ours, _, submitted = " ".join(command.words[1:]).partition(" -- ")
    words = ours.split()
    while hasattr(group, "commands"):
        group = group.commands[words.pop(0)]
    offered = {option for parameter in group.params for option in parameter.opts}
    assert {w.split("=")[0] for w in words if w.startswith("--")} <= offered
    if group.name == "submit":
        recipe = submitted or words[-1]
        assert load_recipe(recipe) and os.access(ROOT / recipe, os.X_OK)


@of("docker")
def test_a_docker_command_builds_what_is_there_and_runs_what_was_built(command):
    words = [*command.words[2:]]
    if command.words[1] == "build":
        assert (ROOT / words[words.index("-f") + 1]).is_file() and words[-1] == "."
        return
    built = [c.words[c.words.index("-t") + 1] for c in ALL if c.words[:2] == ("docker", "build")]
    (image,) = [word for word in words if word in built]
    name, *rest = words[words.index(image) + 1 :]
    group: Any = typer.main.get_command(app)
    assert group.commands[name].make_context(name, rest).params["recipe"] == "demo.yaml"


@of("pip")
def test_an_extra_that_is_installed_is_one_of_ours(command):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (wanted,) = [word for word in command.words if word.startswith("dro-rl[")]
    assert wanted.removeprefix("dro-rl[").removesuffix("]") in project["optional-dependencies"]


@of("pre-commit", "tensorboard")
def test_what_make_setup_installs_has_the_program(command: Command):
    assert entry_points(group="console_scripts", name=command.program)
