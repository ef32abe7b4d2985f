"""What the commands have in common: their arguments, and from these to a recipe."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dro_rl import completion
from dro_rl.errors import UserError

if TYPE_CHECKING:  # pydantic takes longer to import than `dro-rl --help` to answer
    from dro_rl.recipe import Recipe

RecipeName = Annotated[
    str,
    typer.Argument(
        help="A recipe's file, or the name of one that the project carries.",
        autocompletion=completion.recipe_names,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="Settings to change: section.key=value ...", autocompletion=completion.settings
    ),
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


def resumed(run: Path, overrides: list[str]) -> Recipe:
    """The recipe that a run goes on with; refuses what would be another experiment."""
    from dro_rl.recipe_file import load_recipe, localise

    require_run(run)
    for override in overrides:
        if "=" not in override:
            raise UserError(
                f"--resume {run} uses the run's own recipe: drop {override}, or start a new run"
            )
    place = f"tracking.run_dir={run.absolute()}"
    recipe = localise(load_recipe(str(run / "recipe.yaml"), [*overrides, place]))
    _require_same(run, recipe)
    return recipe


def begun(recipe: Recipe) -> Path | None:
    """The run that `tracking.resume: auto` goes on with; None where there is none yet."""
    run = Path(recipe.tracking.run_dir)
    if recipe.tracking.resume == "never" or not (run / "recipe.yaml").is_file():
        return None
    require_run(run)
    _require_same(run, recipe)
    return run


def finished(run: Path, recipe: Recipe) -> str:
    """What to say of a run that has nothing left to do, and whose last checkpoint is whole; empty
    of another. What it did not come to after that is made good then."""
    from dro_rl import checkpoint, durable, progress
    from dro_rl.tracking.report import LiveReport
    from dro_rl.tracking.run_directory import RunDirectory

    directory = RunDirectory.open(run)
    last = checkpoint.folder_of(directory, checkpoint.latest(directory))
    if not checkpoint.is_finished(directory, recipe) or durable.damage(last):
        return ""
    progress.forget(directory)
    checkpoint.prune(directory, recipe)
    LiveReport(directory).write()
    also = checkpoint.how_to_evaluate(directory)
    return f"{run}: has done its iterations; training.iterations=N goes on{also}"


def _require_same(run: Path, recipe: Recipe) -> None:
    """Refuse a recipe whose results would be others than the run's."""
    from dro_rl.recipe_file import load_recipe, localise

    ours = localise(load_recipe(str(run / "recipe.yaml"))).lasting()
    theirs = recipe.lasting()
    lines = [
        f"  {key}: {ours.get(key, 'not set')!r} -> {theirs.get(key, 'not set')!r}"
        for key in ours | theirs
        if key not in ours or key not in theirs or ours[key] != theirs[key]
    ]
    if lines:
        raise UserError(
            f"{run}: going on with other settings than it was begun with would be another "
            "experiment:\n" + "\n".join(lines) + "\ntake these back (training.iterations, cluster, "
            "tracking and what else no result depends on may change), or start a new run with "
            "tracking.run_dir=..."
        )


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
