"""The command groups `recipes`, `retriever` and `reward`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from dro_rl.command_line import IN_ONE_PROCESS, Overrides, RecipeName, load, prepare_process

recipes = typer.Typer(
    invoke_without_command=True, help="List the project's recipes, or copy one to change it."
)


@recipes.callback()
def list_recipes(context: typer.Context) -> None:
    """List the project's recipes: what each shows, needs and takes."""
    if context.invoked_subcommand:
        return
    from dro_rl.shipped import shipped_recipes

    for recipe in shipped_recipes():
        typer.echo(f"{recipe.name}  (dro-rl {recipe.command})")
        for label, text in (
            ("", recipe.about),
            ("needs: ", recipe.needs),
            ("takes: ", recipe.takes),
        ):
            if text:
                typer.echo(f"    {label}{text}")
    typer.echo("\ndro-rl recipes copy NAME: one to change; dro-rl check NAME: what it resolves to")


@recipes.command("copy")
def copy(
    name: Annotated[str, typer.Argument(help="As `dro-rl recipes` shows it.")],
    target: Annotated[Path, typer.Argument(help="A new file, or a folder.")] = Path(),
) -> None:
    """Copy a recipe of the project, to start one's own from."""
    from dro_rl.shipped import copy_recipe

    typer.echo(f"written: {copy_recipe(name, target)}")


retriever = typer.Typer(no_args_is_help=True, help="A recipe's retriever as a service.")


@retriever.command("serve")
def serve_retriever(
    recipe: RecipeName,
    overrides: Overrides = None,
    host: Annotated[str, typer.Option(help="0.0.0.0 lets other machines ask.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8100,
    timeout: Annotated[float, typer.Option(min=0.1, help="For one request [s].")] = 60,
) -> None:
    """Serve a recipe's retriever over HTTP, for retrieval.kind: http and your own programs."""
    loaded = load(recipe, overrides)
    prepare_process(loaded)
    from dro_rl.retriever_server import serve_forever
    from dro_rl.tracking.console import Console

    serve_forever(loaded, host, port, timeout, Console())


class _RunUnlessNamed(TyperGroup):
    """`reward FILE ...` is `reward run FILE ...`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "--help"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


rewards = typer.Typer(
    cls=_RunUnlessNamed,
    no_args_is_help=True,
    help="Run a reward on a few questions (reward FILE --recipe R), or serve it over HTTP.",
)
RewardName = Annotated[
    str,
    typer.Argument(
        help="What a recipe's `reward` may say: a file, module:Class, an address, "
        '"{use: FILE, SETTING: ...}", or a list of these.',
        metavar="REWARD",
    ),
]


@rewards.command("run")
def run_reward(
    reward: RewardName,
    recipe: Annotated[str, typer.Option(help="Where questions and policies come from.")],
    overrides: Overrides = None,
    questions: Annotated[int, typer.Option(min=1, help="Training questions to show.")] = 4,
) -> None:
    """Run a reward on a few questions in the foreground; show selections, answers and scores."""
    here = (*IN_ONE_PROCESS, "rollout.engine=transformers")  # no engine to start
    loaded = load(recipe, [*(overrides or []), f"reward={reward}", *here])
    prepare_process(loaded)
    from dro_rl.reward_command import run_reward as run
    from dro_rl.tracking.console import Console

    run(loaded, questions, Console())


@rewards.command("serve")
def serve_reward(
    reward: RewardName,
    host: Annotated[str, typer.Option(help="0.0.0.0 for every network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8100,
) -> None:
    """Serve a reward over HTTP, for `reward: http://HOST:PORT/score`; DRO_RL_TOKEN guards it."""
    from dro_rl.reward import load_reward
    from dro_rl.reward.server import serve
    from dro_rl.sections.reward import read_reward

    serve(load_reward(read_reward(reward)), host, port, lambda text: print(text, flush=True))
