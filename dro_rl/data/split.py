"""Questions to train on and questions to evaluate on, and the checks both file formats share."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator

from dro_rl.data_sections import HotpotData, JsonlData
from dro_rl.errors import UserError
from dro_rl.records import Example


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be blank")
    return text


Text = Annotated[str, AfterValidator(_not_blank)]  # of a record: more than white space


@dataclass(frozen=True, slots=True)
class Split:
    """Examples to train on and held-out ones to evaluate on; neither is empty."""

    train: list[Example]
    evaluation: list[Example]


def split_files(data: HotpotData | JsonlData, read: Callable[[str], list[Example]]) -> Split:
    """Read `path` and `evaluation_path`, or hold out the end of `path`.

    `train_questions` and `evaluation_questions` are upper limits; the questions that come first
    are kept, except that held-out ones are the last of a file that is the only one.

    Raises:
        UserError: neither setting says what to evaluate on, or nothing is left to train on.
    """
    examples = read(data.path)
    if data.evaluation_path is not None:
        evaluation = read(data.evaluation_path)[: data.evaluation_questions]
    elif data.evaluation_questions is None:
        raise UserError(
            f"{data.path} is the only file, so nothing says what to evaluate on: set "
            "data.evaluation_path to another file, or data.evaluation_questions to how many "
            "questions to hold out from its end"
        )
    else:
        held_out = data.evaluation_questions
        if held_out >= len(examples):
            raise UserError(
                f"data.evaluation_questions ({held_out}) leaves nothing to train on: {data.path} "
                f"has {len(examples)} questions; lower it, or set data.evaluation_path"
            )
        examples, evaluation = examples[:-held_out], examples[-held_out:]
    return Split(examples[: data.train_questions], evaluation)


def check_disjoint(split: Split, key: Callable[[Example], Hashable], source: str) -> None:
    """Refuse a question that is in both: its evaluation would measure memory.

    Raises:
        UserError: names the first question whose `key` occurs on both sides.
    """
    train = {key(example): example.id for example in split.train}
    for example in split.evaluation:
        if key(example) in train:
            raise UserError(
                f"{source}: question {example.question!r} is both in train (id "
                f"{train[key(example)]!r}) and in evaluation (id {example.id!r}): remove it from "
                "one of them"
            )


def check_not_empty(examples: Sequence[Example], source: str) -> None:
    """
    Raises:
        UserError: there is no question at all.
    """
    if not examples:
        raise UserError(f"{source} holds no questions: give a file with at least one")


def check_unique(examples: Iterable[tuple[str, Example]]) -> None:
    """Refuse ids that occur twice; each example comes with its place ("FILE, line 3").

    Raises:
        UserError: names both places.
    """
    seen: dict[str, str] = {}
    for place, example in examples:
        if example.id in seen:
            raise UserError(
                f"{place}: id {example.id!r} was used before ({seen[example.id]}): give every "
                "question an id of its own"
            )
        seen[example.id] = place
