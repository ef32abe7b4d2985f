"""The commands that put a trained pair to use elsewhere: `export` and `serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from dro_rl.command_line import Overrides, RunPath, prepare_process, require_run, with_environment
from dro_rl.errors import UserError


def export(
    run: RunPath,
    out: Annotated[Path, typer.Argument(help="A folder that is not there yet.")],
    iteration: Annotated[
        str | None, typer.Option(help="A number, or best; default: the last.")
    ] = None,
) -> None:
    """Write the pair as Hugging Face folders with cards, and a pipeline.py for transformers."""
    require_run(run)
    wanted = _iteration(iteration)
    from dro_rl.export import export_run

    typer.echo(f"written: {export_run(run, out, wanted, typer.echo)}")


def serve(
    run: RunPath,
    overrides: Overrides = None,
    iteration: Annotated[int | None, typer.Option(help="Default: the last.")] = None,
    host: Annotated[str, typer.Option(help="0.0.0.0 lets other machines ask.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    timeout: Annotated[float, typer.Option(min=0.1, help="For one request [s].")] = 60,
) -> None:
    """Answer OpenAI's chat requests with a run's pair, sources included."""
    from dro_rl.recipe_file import load_recipe, localise

    require_run(run)
    loaded = localise(load_recipe(str(run / "recipe.yaml"), with_environment(overrides)))
    prepare_process(loaded)
    from dro_rl.chat.service import serve_run
    from dro_rl.tracking.console import Console

    serve_run(run.absolute(), loaded, iteration, host, port, timeout, Console())


def _iteration(given: str | None) -> int | Literal["best"] | None:
    if given is None:
        return None
    if given == "best":
        return "best"
    if not given.isdecimal():
        raise UserError(f"--iteration {given}: give a number, or best")
    return int(given)
