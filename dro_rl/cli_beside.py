"""The commands beside a run: `new` before it, `watch` while it goes on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from dro_rl.errors import UserError


def new(
    file: Annotated[Path, typer.Argument(help="The recipe to write.")] = Path("my.yaml"),
    data: Annotated[str | None, typer.Option(help="facts, FILE.jsonl, or KIND:PATH.")] = None,
    model: Annotated[
        str | None, typer.Option(help="builtin, scratch, or a folder or hub name.")
    ] = None,
    hardware: Annotated[str | None, typer.Option(help="cpu, or GPUs: 1x24, 8x80 (GiB).")] = None,
) -> None:
    """Write a recipe from three answers: which data, which model, which hardware."""
    from dro_rl.estimate.gpus import found
    from dro_rl.new_recipe import DATA, HARDWARE, MODEL, write_recipe

    if file.exists():
        raise UserError(f"{file}: is there already: give another name, or remove it")
    gpus = found()
    here = f"{gpus[0]}x{gpus[1]:.0f}" if gpus else "cpu"
    data = data or _ask("--data", f"Data? {DATA}", "facts")
    model = model or _ask("--model", f"Model? {MODEL}", "builtin" if data == "facts" else "scratch")
    hardware = hardware or _ask("--hardware", f"Hardware? {HARDWARE}", here)
    commands = write_recipe(file, data, model, hardware)
    typer.echo(f"written: {file}\n\nnext:\n" + "\n".join(f"  {line}" for line in commands))


def _ask(option: str, question: str, default: str) -> str:
    if not sys.stdin.isatty():
        raise UserError(f"{option}: there is no terminal to ask on: give it. {question}")
    return typer.prompt(question, default=default)


def watch(
    run: Annotated[Path, typer.Argument(help="A run directory, which need not be there yet.")],
) -> None:
    """Follow a run in the terminal: stage, time left, figures, an example; Ctrl-C ends it."""
    try:
        from dro_rl.tracking.console import Console
        from dro_rl.tracking.watch_screen import watch as follow

        follow(run, Console())
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
