"""What a recipe trains and evaluates on: counts, lengths, what retrieval finds, and examples."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from rich import box
from rich.console import Console as RichConsole
from rich.table import Table

from dro_rl.data import load_examples, overlaps
from dro_rl.evaluation import answer_recall, normalise_answer
from dro_rl.jsonlines import located
from dro_rl.prompts import PromptWriter
from dro_rl.recipe import Recipe
from dro_rl.records import Example
from dro_rl.sections.data import FileData
from dro_rl.sections.encoder import EncoderSelector
from dro_rl.tracking.console import Console

SHOWN = 3  # examples
_WIDTH = 100  # characters of a document that is shown


@dataclass(frozen=True, slots=True)
class Side:
    """The figures of the training questions, or of the evaluation questions, one a question.

    `documents` and `gold` count what comes with a question, `candidates` what it gets by retrieval.
    `gold_found` is the share of its gold documents that are among these candidates (NaN where it
    has none), `answer_found` whether one of them holds an answer (the share of its parts, where it
    has some): the mean is the ceiling of recall@k. `closed` marks the answers yes and no, which
    documents rarely hold.
    """

    answers: np.ndarray
    documents: np.ndarray
    gold: np.ndarray
    candidates: np.ndarray
    gold_found: np.ndarray
    answer_found: np.ndarray
    closed: np.ndarray


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of every question, candidate, reference answer and selector prompt, the last as if
    the context had no end."""

    question: list[int]
    document: list[int]
    answer: list[int]
    prompt: list[int]


def report_data(recipe: Recipe, console: Console) -> None:
    """Print the report.

    Raises:
        UserError: bad data or retrieval, or a tokenizer that cannot be loaded.
    """
    split = load_examples(recipe.data, recipe.training.seed)
    from dro_rl.questions import with_candidates  # takes seconds, and bad data is told without

    everything = [*split.train, *split.evaluation]
    with console.stage("retrieve", len(everything), "questions") as advance:
        ready = with_candidates(recipe, everything, everything, advance, console.say)
    cut = len(split.train)
    sides = [_side(split.train, ready[:cut]), _side(split.evaluation, ready[cut:])]
    table = _counts(sides)
    if isinstance(recipe.data, FileData):  # the worlds of kind: facts share questions, not answers
        table.add_row("also in train", "", f"{len(overlaps(split)):,}")
    _print(console, table)
    _report_lengths(recipe, ready, console)
    for example in ready[:SHOWN]:
        for line in _shown(example):
            console.say(line)
    console.say("  (* marks a gold document)")


def _report_lengths(recipe: Recipe, examples: Sequence[Example], console: Console) -> None:
    if isinstance(recipe.selector, EncoderSelector):
        console.say("no lengths: those are of prompts, and an encoder reads texts one by one")
        return
    writer = selector_writer(recipe)
    if writer is None:
        console.say(
            f"no lengths: {recipe.selector.model}, which has the tokenizer, is not there yet "
            "(dro-rl warmup makes it)"
        )
        return
    lengths = measure_lengths(recipe, writer, examples, console)
    _print(console, _lengths(lengths))
    cut = sum(tokens > writer.max_tokens for tokens in lengths.prompt)
    console.say(
        f"{cut:,} of {len(lengths.prompt):,} selector prompts have their documents cut to fit "
        f"{writer.max_tokens:,} tokens (selector.max_length less max_new_tokens)"
    )


def _side(examples: Sequence[Example], ready: Sequence[Example]) -> Side:
    gold = np.array([_gold(e) for e in examples])
    found = np.array([_gold(e) for e in ready], float)
    everywhere = [answer_recall(e, range(len(e.candidates)), len(e.candidates)) for e in ready]
    closed = [normalise_answer(e.answers[0]) in ("yes", "no") for e in examples]
    return Side(
        answers=np.array([len(e.answers) for e in examples]),
        documents=np.array([len(e.candidates) for e in examples]),
        gold=gold,
        candidates=np.array([len(e.candidates) for e in ready]),
        gold_found=np.divide(found, gold, out=np.full(len(found), np.nan), where=gold > 0),
        answer_found=np.array(everywhere),
        closed=np.array(closed),
    )


def _gold(example: Example) -> int:
    return sum(document.is_gold for document in example.candidates)


def selector_writer(recipe: Recipe) -> PromptWriter | None:
    """The writer of the selector's prompts; before the warm-up that makes the selector, by the
    tokenizer that it will take over. None where the warm-up has yet to make that too."""
    from dro_rl.policy.causal_lm import prompt_writer

    section = recipe.causal_lm("selector")
    made = section.model.startswith("builtin/") or os.path.exists(located(section.model))
    if made or section.init is None:
        return prompt_writer(section, section.model)
    return None if section.init == "scratch" else prompt_writer(section, section.init)


def measure_lengths(
    recipe: Recipe, writer: PromptWriter, examples: Sequence[Example], console: Console
) -> Lengths:
    """Lengths in the selector's tokens; documents are counted with their title."""
    lengths = Lengths([], [], [], [])
    whole = replace(writer, max_tokens=sys.maxsize)
    with console.stage("measure", len(examples), "questions") as advance:
        for example in examples:
            documents = [f"{d.title} {d.text}" for d in example.candidates]
            texts = [example.question, *example.answers, *documents]
            encoded = writer.tokenizer(texts, add_special_tokens=False, verbose=False)
            question, *others = (len(ids) for ids in encoded["input_ids"])
            lengths.question.append(question)
            lengths.answer.extend(others[: len(example.answers)])
            lengths.document.extend(others[len(example.answers) :])
            prompt = whole.select(example.question, example.candidates, recipe.selector.documents)
            lengths.prompt.append(len(prompt.token_ids))
            advance(1)
    return lengths


# --- what is printed ------------------------------------------------------------------------------


def _counts(sides: Sequence[Side]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="Questions: mean (least to most)")
    for heading in ("", "train", "evaluation"):
        table.add_column(heading, justify="right" if heading else "left")
    rows = {
        "questions": [f"{len(side.answers):,}" for side in sides],
        "reference answers a question": [_spread(side.answers) for side in sides],
        "documents that come with a question": [_spread(side.documents) for side in sides],
        "gold among them": [_spread(side.gold) for side in sides],
        "candidates after retrieval": [_spread(side.candidates) for side in sides],
        "gold documents among the candidates": [_share(side.gold_found) for side in sides],
        "answer in the candidates": [_share(side.answer_found) for side in sides],
        "answer is yes or no": [_share(side.closed) for side in sides],
    }
    for name, cells in rows.items():
        table.add_row(name, *cells)
    return table


def _lengths(lengths: Lengths) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="Lengths in tokens of the selector")
    for heading in ("", "mean", "median", "95 %", "max"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, values in (
        ("question", lengths.question),
        ("candidate document", lengths.document),
        ("reference answer", lengths.answer),
        ("selector prompt, uncut", lengths.prompt),
    ):
        if values:
            middle, high = np.percentile(values, [50, 95])
            cells = (f"{middle:,.0f}", f"{high:,.0f}", f"{max(values):,}")
            table.add_row(name, f"{np.mean(values):,.1f}", *cells)
    return table


def _spread(counts: np.ndarray) -> str:
    return f"{counts.mean():.1f} ({counts.min()} to {counts.max()})"


def _share(values: np.ndarray) -> str:
    return "-" if np.isnan(values).all() else f"{100 * np.nanmean(values):.1f} %"


def _shown(example: Example) -> Iterator[str]:
    yield f"\n{example.question}  (reference: {' | '.join(example.answers)})"
    for number, document in enumerate(example.candidates, start=1):
        mark = "*" if document.is_gold else " "
        text = " ".join(f"{document.title}: {document.text}".split())
        yield f"  {mark}[{number}] {text[:_WIDTH]}"


def _print(console: Console, table: Table) -> None:
    RichConsole(file=console.rich.file, width=max(console.rich.width, 100)).print(table)
