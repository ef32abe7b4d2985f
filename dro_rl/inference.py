"""Using a trained pair: evaluation of a run, and answering one question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dro_rl import checkpoint
from dro_rl.cluster import open_cluster
from dro_rl.data import Split, load_examples, overlaps, read_file
from dro_rl.data_sections import FactsData, HotpotData, JsonlData
from dro_rl.errors import UserError
from dro_rl.evaluator import evaluate
from dro_rl.normalise import normalise_question
from dro_rl.questions import load_questions, with_candidates
from dro_rl.recipe import PolicyName, Recipe
from dro_rl.recipe_file import load_recipe, localise
from dro_rl.records import Example
from dro_rl.retrieval.corpus import read_documents
from dro_rl.retrieval_sections import Bm25Retrieval, CorpusSection, HttpRetrieval
from dro_rl.rollout.worker import RolloutWorker
from dro_rl.teams import process_count, start_teams
from dro_rl.tracking.console import Console
from dro_rl.tracking.run_directory import RunDirectory


def evaluate_run(
    path: Path, recipe: Recipe, data: Path | None, iteration: int | None, console: Console
) -> None:
    """Evaluate a checkpoint.

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
    with open_cluster(recipe.cluster, processes, console.say, path / "stacks") as cluster:
        teams = start_teams(recipe, cluster, models, console, None)
        summary, rows = evaluate(teams, examples, at, console)
    console.evaluations([summary])
    if _results_matter(recipe) != _results_matter(own):
        console.say("not written: these settings are not the run's own")
        return
    name = f"{data.name}-iteration-{at:04d}" if data else f"iteration-{at:04d}"
    console.say(f"written: {run.write_evaluation(name, summary, rows)}")


def _results_matter(recipe: Recipe) -> dict[str, Any]:
    """The settings that an evaluation's figures depend on, but for where a run's files lie."""
    settings = localise(recipe).resolved()
    settings["rollout"]["decoding"] = recipe.decoding  # which the algorithm may decide
    for section in ("cluster", "tracking", "algorithm", "warmup", "reward"):
        del settings[section]
    del settings["rollout"]["workers"], settings["training"]["iterations"]
    settings["data"].pop("allow_overlap", None)
    retrieval = settings["retrieval"]
    for searching in (retrieval, *retrieval.get("of", ())):  # the members of a fusion
        for key in ("cache_dir", "environment", "batch_size"):
            searching.pop(key, None)
    return settings


def answer_question(
    path: Path,
    recipe: Recipe,
    question: str,
    documents: Path | None,
    iteration: int | None,
    console: Console,
) -> None:
    """Print the answer and the documents it came from."""
    run = RunDirectory.open(path)
    _, models = policies_of(run, recipe, iteration)
    rollout = recipe.rollout.model_copy(update={"engine": "transformers"})  # no engine to start
    recipe = recipe.model_copy(update={"rollout": rollout})
    example = _asked(recipe, question, documents, console)
    candidates = example.candidates
    selector = RolloutWorker(recipe, "selector", models["selector"])
    (rolled,) = selector.select([example], 1, 0, True)
    selection = rolled.selections[0]
    generator = RolloutWorker(recipe, "generator", models["generator"])
    (text,) = generator.answer([example], [selection.documents])
    console.say(text)
    console.say(f"\nselected {selection.text!r} of {len(candidates)} documents:")
    for i in selection.documents:
        console.say(f"  [{i + 1}] {candidates[i].title}: {candidates[i].text}")


def policies_of(
    run: RunDirectory, recipe: Recipe, iteration: int | None
) -> tuple[int, dict[PolicyName, str]]:
    """An iteration (by default the last whole one; 0 is the warm start) and its policies.

    Raises:
        UserError: the run has no such checkpoint.
    """
    last = checkpoint.latest(run)
    at = iteration if iteration is not None else last
    if at and not checkpoint.folder_of(run, at).is_dir():
        raise UserError(f"{run.path}: no checkpoint of iteration {at}; the last is {last}")
    return at, {
        "selector": checkpoint.policy_folder(run, at, "selector", recipe.selector.model),
        "generator": checkpoint.policy_folder(run, at, "generator", recipe.generator.model),
    }


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


def _asked(recipe: Recipe, question: str, documents: Path | None, console: Console) -> Example:
    """The question with its candidates: from the documents given, by the recipe's retriever, or
    from the data where each question comes with its own."""
    asked = Example(id="question", question=question, answers=("",))
    if documents is not None:
        asked = replace(asked, candidates=tuple(read_documents(str(documents))))
        own = Bm25Retrieval(kind="bm25", corpus="own", candidates=recipe.retrieval.candidates)
        recipe = recipe.model_copy(update={"retrieval": own})
        return with_candidates(recipe, [asked], [])[0]
    retrieval = recipe.retrieval
    has_corpus = isinstance(retrieval, CorpusSection) and retrieval.corpus_path is not None
    if has_corpus or isinstance(retrieval, HttpRetrieval):
        return with_candidates(recipe, [asked], [], say=console.say)[0]
    split = load_examples(recipe.data, recipe.training.seed)
    everything = [*split.train, *split.evaluation]
    own = isinstance(retrieval, Bm25Retrieval) and retrieval.corpus == "own"
    if isinstance(retrieval, CorpusSection) and not own:
        return with_candidates(recipe, [asked], everything, say=console.say)[0]
    known = {normalise_question(e.question): e for e in everything}
    if normalise_question(question) not in known:
        raise UserError(
            "this run's documents come with its questions, and this question is none of them: "
            "give documents to select from with --documents FILE (JSON lines of title and text)"
        )
    return with_candidates(recipe, [known[normalise_question(question)]], [])[0]
