"""The command line. Every command is one call; heavy imports wait until a command needs them."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from dro_rl.errors import UserError
from dro_rl.libraries import quiet_libraries

if TYPE_CHECKING:  # pydantic takes longer to import than `dro-rl --help` to answer
    from dro_rl.recipe import Recipe

app = typer.Typer(
    help="Direct Retrieval-augmented Optimization: train a selector and a generator end to end.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

retriever = typer.Typer(no_args_is_help=True)
app.add_typer(retriever, name="retriever", help="A recipe's retriever as a service.")

RecipeName = Annotated[
    str, typer.Argument(help="A recipe's file, or the name of one that the project carries.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings to change: section.key=value ...")
]
RunPath = Annotated[Path, typer.Argument(help="A run directory.")]


def main() -> None:
    """Entry point: a user's error is one message and exit code 2, ours keeps its traceback."""
    quiet_libraries()
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


@app.command()
def train(
    recipe: Annotated[
        str | None, typer.Argument(help="A recipe; not needed with --resume.")
    ] = None,
    overrides: Overrides = None,
    resume: Annotated[
        Path | None, typer.Option(help="Continue this run at its next iteration.")
    ] = None,
) -> None:
    """Train both policies of a recipe."""
    if resume:
        loaded = _resumed(
            resume, _with_environment([*([recipe] if recipe else []), *(overrides or [])])
        )
    else:
        loaded = _load(recipe, overrides)
    _prepare_process(loaded)
    from dro_rl.tracking.console import Console
    from dro_rl.tracking.run_directory import RunDirectory

    if loaded.algorithm.kind == "trl_grpo":
        from dro_rl.trl_grpo import train as run_training
    else:
        from dro_rl.trainer import train as run_training

    console = Console()
    run = run_training(loaded, console, RunDirectory.open(resume.absolute()) if resume else None)
    evaluations = run.evaluations()
    console.evaluations(evaluations)
    if len(evaluations) > 1:
        console.timeline(run.iterations())
        last = evaluations[-1]["iteration"]
        console.examples(run.evaluated_questions(0), run.evaluated_questions(last))
    console.say(f"\nreport: {run.path / 'report.html'}\nrun directory: {run.path}")


@app.command()
def check(recipe: RecipeName, overrides: Overrides = None) -> None:
    """Check a recipe; show it resolved, its sizes in words, and the memory of each process."""
    loaded = _load(recipe, overrides)
    import yaml

    from dro_rl.estimate import in_words, memory

    print(yaml.safe_dump(loaded.resolved(), sort_keys=False, allow_unicode=True))
    print("\n".join(in_words(loaded)))
    print(_about_reward(loaded))
    print("\nMemory a process, activations not counted [GiB]:")
    for process, gib, what in memory(loaded):
        print(f"  {process:<22} {gib:>8}  {what}")


@app.command()
def data(recipe: RecipeName, overrides: Overrides = None) -> None:
    """Show what a recipe trains and evaluates on: counts, lengths, what retrieval finds."""
    loaded = _load(recipe, overrides)
    _prepare_process(loaded)
    from dro_rl.data_report import report_data
    from dro_rl.tracking.console import Console

    report_data(loaded, Console())


@app.command()
def evaluate(
    run: RunPath,
    overrides: Overrides = None,
    data: Annotated[
        Path | None, typer.Option(help="Other questions: .jsonl, or HotpotQA's .json.")
    ] = None,
    iteration: Annotated[int | None, typer.Option(help="Default: the last.")] = None,
) -> None:
    """Evaluate a run's policies, on its held-out questions or on others."""
    from dro_rl.recipe_file import load_recipe, localise

    _require_run(run)
    loaded = localise(load_recipe(str(run / "recipe.yaml"), _with_environment(overrides)))
    _prepare_process(loaded)
    from dro_rl.inference import evaluate_run
    from dro_rl.tracking.console import Console

    evaluate_run(run.absolute(), loaded, data, iteration, Console())


@app.command()
def warmup(
    recipe: RecipeName,
    overrides: Overrides = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for selector/ and generator/.")
    ] = None,
) -> None:
    """Make the policies that training starts from, by supervised warm-up."""
    loaded = _load(recipe, overrides)
    _prepare_process(loaded)
    from dro_rl.tracking.console import Console
    from dro_rl.warmup import warm_up

    console = Console()
    made = warm_up(loaded, output, console)
    changes = [f"{p}.model={path}" for p, path in made.items()]
    console.say(f"warmed up: dro-rl train {recipe} {' '.join(changes)}")


@app.command()
def answer(
    run: RunPath,
    question: str,
    documents: Annotated[
        Path | None, typer.Option(help="JSON lines of title and text to select from.")
    ] = None,
    iteration: Annotated[int | None, typer.Option(help="Default: the last.")] = None,
) -> None:
    """Retrieve, select and answer; show the selected documents."""
    from dro_rl.recipe_file import load_recipe, localise

    _require_run(run)
    loaded = localise(load_recipe(str(run / "recipe.yaml")))
    _prepare_process(loaded)
    from dro_rl.inference import answer_question
    from dro_rl.tracking.console import Console

    answer_question(run.absolute(), loaded, question, documents, iteration, Console())


@retriever.command("serve")
def serve_retriever(
    recipe: RecipeName,
    overrides: Overrides = None,
    host: Annotated[str, typer.Option(help="0.0.0.0 lets other machines ask.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8100,
    timeout: Annotated[float, typer.Option(min=0.1, help="For one request [s].")] = 60,
) -> None:
    """Serve a recipe's retriever over HTTP, for retrieval.kind: http and your own programs."""
    loaded = _load(recipe, overrides)
    _prepare_process(loaded)
    from dro_rl.retriever_server import serve_forever
    from dro_rl.tracking.console import Console

    serve_forever(loaded, host, port, timeout, Console())


@app.command()
def compare(
    file: Annotated[
        str, typer.Argument(help="A comparison's file, or the name of one that the project has.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="seeds=[...], output=..., or settings of all arms: section.key=value"),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time.")] = 1,
) -> None:
    """Train several arms over several seeds; one table with intervals, CSV and figures."""
    from dro_rl.compare import run_comparison
    from dro_rl.comparison.spec import load_comparison
    from dro_rl.tracking.console import Console

    changes = _with_environment(overrides)
    comparison = load_comparison(file, changes)
    command = shlex.join(["dro-rl", "compare", file, *changes])
    if not run_comparison(comparison, command, jobs, Console()):
        raise typer.Exit(1)


@app.command()
def variance(
    run: RunPath,
    questions: Annotated[int, typer.Option(min=1, help="Training questions to average over.")] = 24,
    repeats: Annotated[int, typer.Option(min=2, help="Groups of 16 selections a question.")] = 64,
) -> None:
    """How noisy the selector's gradient is, by estimator, m and iteration of a run."""
    from dro_rl.recipe_file import load_recipe, localise

    _require_run(run)
    loaded = localise(load_recipe(str(run / "recipe.yaml")))
    _prepare_process(loaded)
    from dro_rl.tracking.console import Console
    from dro_rl.variance import measure

    console = Console()
    console.variances(measure(run.absolute(), loaded, questions, repeats, console))
    console.say(f"written: {run.absolute() / 'variance.csv'}")


@app.command()
def profile(
    recipe: RecipeName,
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps of each policy.")] = 3,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the traces; default: beside the run directory.")
    ] = None,
) -> None:
    """Run a recipe's stages on a batch in one process under torch.profiler; show the top of it."""
    loaded = _load(recipe, [*(overrides or []), "cluster.mode=local"])
    _prepare_process(loaded)
    from dro_rl.profiling import profile as run_profiler
    from dro_rl.tracking.console import Console

    console = Console()
    folder = run_profiler(loaded, steps, output, console)
    console.say(f"traces, for chrome://tracing or ui.perfetto.dev: {folder}")


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run directories, shown side by side.")],
    output: Annotated[
        Path | None, typer.Option(help="Default: report.html in the run, or here for several.")
    ] = None,
) -> None:
    """Write the page that shows runs: figures, curves, and every selection to browse."""
    from dro_rl.tracking.report import write_report
    from dro_rl.tracking.run_directory import RunDirectory

    path = output or (runs[0] if len(runs) == 1 else Path()) / "report.html"
    write_report([RunDirectory.open(run) for run in runs], path)
    typer.echo(f"written: {path}")


# --- rewards ------------------------------------------------------------------------------------


class _RunUnlessNamed(TyperGroup):
    """`reward FILE ...` is `reward run FILE ...`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "--help"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


rewards = typer.Typer(cls=_RunUnlessNamed, no_args_is_help=True)
app.add_typer(
    rewards,
    name="reward",
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
    here = ("cluster.mode=local", "rollout.engine=transformers")  # no engine to start
    loaded = _load(recipe, [*(overrides or []), f"reward={reward}", *here])
    _prepare_process(loaded)
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
    from dro_rl.reward_sections import read_reward

    serve(load_reward(read_reward(reward)), host, port, lambda text: print(text, flush=True))


# --- helpers --------------------------------------------------------------------------------------


def _load(name: str | None, overrides: list[str] | None) -> Recipe:
    from dro_rl.recipe_file import load_recipe, localise

    if name is None:
        raise UserError("which recipe? Give its file, or --resume RUN")
    return localise(load_recipe(name, _with_environment(overrides)))


def _with_environment(overrides: list[str] | None) -> list[str]:
    """Overrides of the command line after those of DRO_RL_OVERRIDES (for `ray job submit`)."""
    text = os.environ.get("DRO_RL_OVERRIDES", "")
    try:
        return [*shlex.split(text), *(overrides or [])]
    except ValueError as error:
        raise UserError(f"DRO_RL_OVERRIDES={text}: {error}") from error


def _about_reward(recipe: Recipe) -> str:
    from dro_rl.reward import load_reward

    terms = recipe.reward if isinstance(recipe.reward, list) else [recipe.reward]
    if any(term.is_url for term in terms):
        return "The reward's server is asked for scale and needs when a run starts."
    reward = load_reward(recipe.reward)
    needs = " and ".join(reward.needs) or "neither likelihood nor answer"
    return f"The reward's scale is {reward.scale}; it needs {needs}."


_MAY_CHANGE = ("training.iterations", "training.early_stop", "cluster.", "rollout.workers")


def _resumed(run: Path, overrides: list[str]) -> Recipe:
    from dro_rl.recipe_file import load_recipe, localise

    _require_run(run)
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


def _require_run(run: Path) -> None:
    from dro_rl.tracking.run_directory import RunDirectory

    RunDirectory.open(run)


def _prepare_process(recipe: Recipe) -> None:
    """What must stand in the environment before torch is imported."""
    os.environ.setdefault("OMP_NUM_THREADS", str(recipe.cluster.threads))
    if recipe.cluster.mode == "local" and recipe.rollout.engine == "vllm":
        from dro_rl.rollout.environment import engine_environment

        os.environ.update(engine_environment(recipe.rollout, recipe.cluster.threads))
