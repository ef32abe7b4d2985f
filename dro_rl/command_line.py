"""What the commands have in common: their arguments, and from these to a recipe."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dro_rl.errors import UserError

if TYPE_CHECKING:  # pydantic takes longer to import than `dro-rl --help` to answer
    from dro_rl.recipe import Recipe

RecipeName = Annotated[
    str, typer.Argument(help="A recipe's file, or the name of one that the project carries.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings to change: section.key=value ...")
]
IN_ONE_PROCESS = ("cluster.mode=local", "selector.ranks=1", "generator.ranks=1")
RunPath = Annotated[Path, typer.Argument(help="A run directory.")]


def load(name: str | None, overrides: list[str] | None) -> Recipe:
    """The recipe of that name with its overrides, paths made absolute."""
    from dro_rl.recipe_file import load_recipe, localise

    if name is None:
        raise UserError("which recipe? Give its file, or --resume RUN")
    return localise(load_recipe(name, with_environment(overrides)))


def with_environment(overrides: list[str] | None) -> list[str]:
    """Overrides of the command line after those of DRO_RL_OVERRIDES (for `ray job submit`)."""
    text = os.environ.get("DRO_RL_OVERRIDES", "")
    try:
        return [*shlex.split(text), *(overrides or [])]
    except ValueError as error:
        raise UserError(f"DRO_RL_OVERRIDES={text}: {error}") from error


_MAY_CHANGE = ("training.iterations", "training.early_stop", "cluster.", "rollout.workers")


def resumed(run: Path, overrides: list[str]) -> Recipe:
    """The recipe that a run goes on with; refuses what would be another experiment."""
    from dro_rl.recipe_file import load_recipe, localise

    require_run(run)
    for override in overrides:
        if "=" not in override:
            raise UserError(
                f"--resume {run} uses the run's own recipe: drop {override}, or start a new run"
            )
        if not override.startswith(_MAY_CHANGE):
            raise UserError(
                f"override {override!r}: a resumed run may change only {', '.join(_MAY_CHANGE)} "
                "(anything else would be another experiment): start a new run for it"
            )
    place = f"tracking.run_dir={run.absolute()}"
    return localise(load_recipe(str(run / "recipe.yaml"), [*overrides, place]))


def require_run(run: Path) -> None:
    """Refuse a folder that is no run."""
    from dro_rl.tracking.run_directory import RunDirectory

    RunDirectory.open(run)


def prepare_process(recipe: Recipe) -> None:
    """What must stand in the environment before torch is imported."""
    os.environ.setdefault("OMP_NUM_THREADS", str(recipe.cluster.threads))
    if recipe.cluster.mode == "local" and recipe.rollout.engine == "vllm":
        from dro_rl.rollout.environment import engine_environment

        os.environ.update(engine_environment(recipe.rollout, recipe.cluster.threads))
