"""What all data sets in files share: where records come from, checks, limits, the split."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Annotated, Any

from pydantic import AfterValidator, ValidationError

from dro_rl.data.files import Record, read_records
from dro_rl.data.hub import HUB_NAME, read_hub
from dro_rl.data.split import Split, check_disjoint, hold_out
from dro_rl.errors import UserError
from dro_rl.jsonlines import describe, located
from dro_rl.normalise import normalise_answer
from dro_rl.records import Example
from dro_rl.sections.data import FileData, HubData


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be blank")
    return text


Text = Annotated[str, AfterValidator(_not_blank)]  # of a record: more than white space


@dataclass(frozen=True)
class Layout:
    """How a data set's records become Examples.

    `examples` takes what a record says and an id for records without one. It may give none (a
    question without an answer) or several (the turns of a dialogue), and raises pydantic's
    ValidationError at a record that is not the set's. `hint` then tells what it should have been.
    """

    examples: Callable[[Any, str], Iterable[Example]]
    hint: str


def load(data: FileData, layout: Layout) -> Split:
    """The questions to train on and the ones to evaluate on.

    `train_questions` and `evaluation_questions` are upper limits, and reading stops there; the
    questions that come first are kept, except that held-out ones are the last of a file that is
    the only one.

    Raises:
        UserError: something cannot be read, a record is bad (named by its place and key), nothing
            says what to evaluate on, or a question is on both sides.
    """
    train_split, evaluation_split = _splits(data)
    if data.evaluation_path is None and not _in_hub_layout(data, data.path):
        examples = read_examples(data, layout, data.path, train_split)
        if data.evaluation_questions is None:
            next(examples)  # what is wrong with the file itself is told first
            raise UserError(
                f"{data.path} is the only file, so nothing says what to evaluate on: set "
                "data.evaluation_path to another file, or data.evaluation_questions to how many "
                "questions to hold out from its end"
            )
        split = hold_out(examples, data.evaluation_questions, data.train_questions, data.path)
    else:
        other = data.evaluation_path or data.path
        train = read_examples(data, layout, data.path, train_split)
        evaluation = read_examples(data, layout, other, evaluation_split)
        split = Split(
            list(islice(train, data.train_questions)),
            list(islice(evaluation, data.evaluation_questions)),
        )
    if not data.allow_overlap:
        check_disjoint(split, " and ".join(filter(None, (data.path, data.evaluation_path))))
    return split


def read_examples(data: FileData, layout: Layout, path: str, split: str) -> Iterator[Example]:
    """The examples of a file, or of a split in the hub's layout, one by one.

    Raises:
        UserError: it cannot be read, holds no question, or a record is bad.
    """
    if isinstance(data, HubData) and _in_hub_layout(data, path):
        records = read_hub(data, path, split)
    else:
        records = read_records(path)
    seen: dict[str, str] = {}
    for record in records:
        for example in _examples(record, layout):
            if example.id in seen:
                raise UserError(
                    f"{record.place}: id {example.id!r} was used before ({seen[example.id]}): "
                    "give every question an id of its own"
                )
            seen[example.id] = record.place
            yield _with_scorable_answers(example, record.place, data)
    if not seen:
        raise UserError(f"{path} holds no questions: give a file with at least one")


def _splits(data: FileData) -> tuple[str, str]:
    return (data.train_split, data.evaluation_split) if isinstance(data, HubData) else ("", "")


def _in_hub_layout(data: FileData, path: str) -> bool:
    place = located(path)
    if not isinstance(data, HubData) or os.path.isfile(place):  # Path's own raises at long names
        return False
    is_name = HUB_NAME.fullmatch(path) is not None and not _named_as_file(path)
    return is_name or os.path.isdir(place)


def _named_as_file(path: str) -> bool:
    return path.removesuffix(".gz").endswith((".json", ".jsonl"))


def _examples(record: Record, layout: Layout) -> list[Example]:
    if not isinstance(record.content, dict):
        raise UserError(f"{record.place}: must be a JSON object; {layout.hint}")
    try:
        examples = list(layout.examples(record.content, record.name))
    except ValidationError as error:
        raise UserError(f"{record.place}: {describe(error)}; {layout.hint}") from error
    for example in examples:
        _check_characters(example, record.place)
        for number, document in enumerate(example.candidates, start=1):
            if not (document.title.strip() or document.text.strip()):
                raise UserError(
                    f"{record.place}: document {number} has neither title nor text: remove it"
                )
    return examples


def _check_characters(example: Example, place: str) -> None:
    documents = (text for d in example.candidates for text in (d.title, d.text))
    for text in (example.id, example.question, *example.answers, *documents):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"{place}: half of a surrogate pair, which is no character, near "
                f"{text[max(0, error.start - 40) : error.end + 40]!r}: mend that text"
            ) from error


def _with_scorable_answers(example: Example, place: str, data: FileData) -> Example:
    """The example without the answers that an empty prediction would match, and each once."""
    if not example.answers:
        raise UserError(f"{place}: question {example.id!r} has no answer: give one, or drop it")
    answers = tuple(dict.fromkeys(a for a in example.answers if normalise_answer(a)))
    if answers:
        return replace(example, answers=answers)
    if data.unscorable_answers == "keep":
        return example
    raise UserError(
        f"{place}: the answer of question {example.id!r}, {' | '.join(example.answers)!r}, is "
        "empty once case, punctuation and articles are gone, so no prediction can score: mend it, "
        "or set data.unscorable_answers: keep"
    )
