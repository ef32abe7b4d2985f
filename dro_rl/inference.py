"""Using a trained pair: evaluation of a run, and answering one question."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dro_rl.checkpoint import policies_of
from dro_rl.cluster.processes import open_cluster
from dro_rl.data import Split, load_examples, overlaps, read_file
from dro_rl.errors import UserError
from dro_rl.evaluator import evaluate
from dro_rl.pipeline import load_pipeline
from dro_rl.questions import load_questions, with_candidates
from dro_rl.recipe import Recipe
from dro_rl.recipe_file import load_recipe, localise
from dro_rl.records import Example
from dro_rl.retrieval.corpus import read_documents
from dro_rl.roles import process_count, start_teams, taken_gpus
from dro_rl.sections.data import FactsData, HotpotData, JsonlData
from dro_rl.sections.retrieval import HttpRetrieval
from dro_rl.tracking.console import Console
from dro_rl.tracking.run_directory import RunDirectory


def evaluate_run(
    path: Path, recipe: Recipe, data: Path | None, iteration: int | None, console: Console
) -> dict[str, Any]:
    """Evaluate a checkpoint; returns the figures.

    Results go to the run's `evaluation/`; those on other data are named by it, and those under
    other settings than the run's are only shown, since its history compares like with like.
    """
    run = RunDirectory.open(path)
    at, models = policies_of(run, recipe, iteration)
    examples = _questions(recipe, data, console)
    own = load_recipe(str(path / "recipe.yaml"))
    if data is not None:
        _warn_of_trained_on(own, examples, console)
    processes = process_count(recipe, learners=False)
    stacks, taken = path / "stacks", taken_gpus(recipe, learners=False)
    with open_cluster(recipe.cluster, processes, console.say, stacks, taken=taken) as cluster:
        teams = start_teams(recipe, cluster, models, console, None)
        summary, rows = evaluate(teams, examples, at, console)
    console.evaluations([summary])
    if _results_matter(recipe) != _results_matter(own):
        console.say("not written: these settings are not the run's own")
        return summary
    name = f"{data.name}-iteration-{at:04d}" if data else f"iteration-{at:04d}"
    console.say(f"written: {run.write_evaluation(name, summary, rows)}")
    return summary


def _results_matter(recipe: Recipe) -> dict[str, Any]:
    """The settings that an evaluation's figures depend on, by dotted key: those that a resumed run
    has to keep but for what training alone reads, and which retriever server is asked."""
    training = ["algorithm", "data.allow_overlap"]
    if not recipe.generator.is_none:  # without one it is the reward that is evaluated
        training.append("reward")
    settings = localise(recipe).lasting()
    kept = {k: v for k, v in settings.items() if not k.startswith(tuple(training))}
    if isinstance(recipe.retrieval, HttpRetrieval):
        kept["retrieval.url"] = recipe.retrieval.url  # all that says which documents it searches
    return {**kept, "rollout.decoding": recipe.decoding}  # which the algorithm may decide


def answer_question(
    path: Path, question: str, documents: Path | None, iteration: int | None, console: Console
) -> None:
    """Print the answer and the documents it came from."""
    given = None if documents is None else list(read_documents(str(documents)))
    with load_pipeline(path, iteration, console.say) as pipeline:
        found = pipeline.answer(question, given)
    if found.text is not None:
        console.say(found.text)
    console.say(f"\nselected {found.selection!r} of {len(found.candidates)} documents:")
    for place, document in zip(found.places, found.documents, strict=True):
        console.say(f"  [{place + 1}] {document.title}: {document.text}")


def _questions(recipe: Recipe, data: Path | None, console: Console) -> list[Example]:
    if data is None:
        return load_questions(recipe, console).evaluation
    if data.suffix == ".jsonl":
        examples = read_file(JsonlData(kind="jsonl", path=str(data)))
    elif data.suffix == ".json":
        examples = read_file(HotpotData(kind="hotpotqa", path=str(data)))
    else:
        raise UserError(f"{data}: give a .jsonl file, or HotpotQA's .json")
    return with_candidates(recipe, examples, examples)


def _warn_of_trained_on(own: Recipe, examples: Sequence[Example], console: Console) -> None:
    """Say how many of the examples the run was trained on, by its own recipe."""
    if isinstance(own.data, FactsData):  # its worlds share questions, not answers
        return
    try:
        train = load_examples(own.data, own.training.seed).train
    except UserError as error:  # the files may be gone, and the figures can be had all the same
        console.say(f"not compared with the run's training questions: {error}")
        return
    known = len(overlaps(Split(train, list(examples))))
    if known:
        console.say(
            f"warning: the run was trained on {known:,} of these {len(examples):,} questions, so "
            "the figures measure memory too"
        )
