"""The commands `train` and `evaluate` as functions, for notebooks and scripts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dro_rl.command_line import begun, finished, prepare_process, require_run
from dro_rl.libraries import quiet_libraries

if TYPE_CHECKING:  # torch takes seconds to import
    from dro_rl.recipe import Recipe
    from dro_rl.tracking.console import Console
    from dro_rl.tracking.run_directory import RunDirectory


def train(recipe: Recipe) -> RunDirectory:
    """Train both policies of a recipe, as `dro-rl train` does.

    With `tracking.resume=auto` a run that has begun goes on where it stands.

    Returns:
        The run: its `path`, and `evaluations()`, `steps()` and `iterations()` as lists of dicts,
        whose names docs/metrics.md explains.
    Raises:
        UserError: bad input, with what to do about it.
    """
    from dro_rl.recipe_file import localise

    quiet_libraries()
    recipe = localise(recipe)
    place = begun(recipe)
    from dro_rl.tracking.console import Console
    from dro_rl.tracking.run_directory import RunDirectory

    if place and finished(place, recipe):
        return RunDirectory.open(place)
    prepare_process(recipe)
    return run_training(recipe, Console(), RunDirectory.open(place) if place else None)


def run_training(recipe: Recipe, console: Console, resume: RunDirectory | None) -> RunDirectory:
    """Run the trainer that the algorithm needs."""
    if recipe.algorithm.kind == "trl_grpo":
        from dro_rl.trl_grpo import train as run
    else:
        from dro_rl.trainer import train as run
    return run(recipe, console, resume)


def evaluate(
    run: str | os.PathLike[str],
    *overrides: str,
    data: str | os.PathLike[str] | None = None,
    iteration: int | None = None,
) -> dict[str, Any]:
    """Evaluate a run's policies on its held-out questions or on others, as `dro-rl evaluate` does.

    Args:
        run: what `train` returned, or a run directory.
        overrides: settings that are other than the run's own: "section.key=value".
        data: other questions: .jsonl, or HotpotQA's .json.
        iteration: of the checkpoint; by default the last, 0 is the warm start.
    Returns:
        The figures, as evaluation/iteration-NNNN.json has them.
    Raises:
        UserError: bad input, with what to do about it.
    """
    from dro_rl.recipe_file import load_recipe, localise

    quiet_libraries()
    place = Path(run).absolute()
    require_run(place)
    recipe = localise(load_recipe(str(place / "recipe.yaml"), overrides))
    prepare_process(recipe)
    from dro_rl.inference import evaluate_run
    from dro_rl.tracking.console import Console

    questions = None if data is None else Path(data)
    return evaluate_run(place, recipe, questions, iteration, Console())
