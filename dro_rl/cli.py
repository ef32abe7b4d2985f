"""The command line. Every command is one call; heavy imports wait until a command needs them."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dro_rl import completion
from dro_rl.cli_beside import new, watch
from dro_rl.cli_services import recipes, retriever, rewards
from dro_rl.cli_trained import export, serve
from dro_rl.command_line import (
    IN_ONE_PROCESS,
    Overrides,
    RecipeName,
    RunPath,
    begun,
    finished,
    load,
    prepare_process,
    require_run,
    resumed,
    with_environment,
)
from dro_rl.errors import UserError
from dro_rl.libraries import quiet_libraries
from dro_rl.redaction import without_secrets

if TYPE_CHECKING:  # pydantic takes longer to import than `dro-rl --help` to answer
    from dro_rl.recipe import Recipe

app = typer.Typer(
    help="Direct Retrieval-augmented Optimization: train a selector and a generator end to end.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

app.command()(new)
app.add_typer(recipes, name="recipes")
app.add_typer(retriever, name="retriever")
app.add_typer(rewards, name="reward")
app.command()(watch)
app.command()(export)
app.command()(serve)


def main() -> None:
    """Entry point: a user's error is one message and exit code 2, ours keeps its traceback."""
    quiet_libraries()
    try:
        app()
    except UserError as error:
        print(f"error: {without_secrets(str(error))}", file=sys.stderr)
        sys.exit(2)


@app.command()
def train(
    recipe: Annotated[
        str | None,
        typer.Argument(
            help="A recipe; not needed with --resume.", autocompletion=completion.recipe_names
        ),
    ] = None,
    overrides: Overrides = None,
    resume: Annotated[Path | None, typer.Option(help="Continue this run where it stands.")] = None,
) -> None:
    """Train both policies of a recipe."""
    if resume:
        loaded = resumed(
            resume, with_environment([*([recipe] if recipe else []), *(overrides or [])])
        )
    else:
        loaded = load(recipe, overrides)
        resume = begun(loaded)
        if resume and (told := finished(resume, loaded)):
            typer.echo(told)
            return
    prepare_process(loaded)
    from dro_rl.api import run_training
    from dro_rl.checkpoint import how_to_go_on
    from dro_rl.ending import says_how_to_go_on
    from dro_rl.tracking.console import Console
    from dro_rl.tracking.run_directory import RunDirectory

    directory = RunDirectory.open(resume.absolute()) if resume else None
    with says_how_to_go_on(lambda: how_to_go_on(directory) if directory else "Nothing had begun"):
        console = Console()
        run = run_training(loaded, console, directory)
    evaluations = run.evaluations()
    console.evaluations(evaluations)
    if len(evaluations) > 1:
        console.timeline(run.iterations())
        last = evaluations[-1]["iteration"]
        console.examples([*run.evaluated_questions(0)], [*run.evaluated_questions(last)])
    console.say(f"\nreport: {run.path / 'report.html'}\nrun directory: {run.path}")


@app.command()
def check(
    recipe: RecipeName,
    overrides: Overrides = None,
    gpu_memory: Annotated[
        float | None, typer.Option(min=1, help="Of a GPU [GiB]; default: this machine's, if any.")
    ] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="How many of them.")] = None,
) -> None:
    """Check a recipe; show it resolved, its sizes in words, and the memory of each process."""
    loaded = load(recipe, overrides)
    import yaml

    from dro_rl.estimate import given_or_found, in_words, memory_in_words

    print(yaml.safe_dump(loaded.resolved(), sort_keys=False, allow_unicode=True))
    print("\n".join(in_words(loaded)))
    print(_about_reward(loaded))
    print()
    print("\n".join(memory_in_words(loaded, given_or_found(gpus, gpu_memory))))


@app.command()
def data(recipe: RecipeName, overrides: Overrides = None) -> None:
    """Show what a recipe trains and evaluates on: counts, lengths, what retrieval finds."""
    loaded = load(recipe, overrides)
    prepare_process(loaded)
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
    from dro_rl.api import evaluate as run_evaluation

    run_evaluation(run, *with_environment(overrides), data=data, iteration=iteration)


@app.command()
def warmup(
    recipe: RecipeName,
    overrides: Overrides = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for selector/ and generator/.")
    ] = None,
) -> None:
    """Make the policies that training starts from, by supervised warm-up."""
    loaded = load(recipe, overrides)
    prepare_process(loaded)
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
    from dro_rl.recipe_file import load_recipe

    require_run(run)
    prepare_process(load_recipe(str(run / "recipe.yaml")))
    from dro_rl.inference import answer_question
    from dro_rl.tracking.console import Console

    answer_question(run, question, documents, iteration, Console())


@app.command()
def compare(
    file: Annotated[
        str,
        typer.Argument(
            help="A comparison's file, or the name of one that the project has.",
            autocompletion=completion.recipe_names,
        ),
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

    changes = with_environment(overrides)
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

    require_run(run)
    loaded = localise(load_recipe(str(run / "recipe.yaml")))
    prepare_process(loaded)
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
    loaded = load(recipe, [*(overrides or []), *IN_ONE_PROCESS])
    prepare_process(loaded)
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


@app.command()
def doctor() -> None:
    """Look at this machine: what is there, what is missing, and what to do about it."""
    from dro_rl.doctor import examine

    missing = 0
    for finding in examine():
        missing += finding.state == "missing"
        typer.echo(f"{finding.state:<8} {finding.name}: {finding.found}")
        if finding.remedy:
            typer.echo(f"{'':<9}-> {finding.remedy}")
    if missing:
        raise typer.Exit(1)
    typer.echo("\nready: dro-rl train demo.yaml")


def _about_reward(recipe: Recipe) -> str:
    from dro_rl.reward import load_reward

    terms = recipe.reward if isinstance(recipe.reward, list) else [recipe.reward]
    if any(term.is_url for term in terms):
        return "The reward's server is asked for scale and needs when a run starts."
    reward = load_reward(recipe.reward)
    needs = " and ".join(reward.needs) or "neither likelihood nor answer"
    return f"The reward's scale is {reward.scale}; it needs {needs}."
