"""Questions to train on and questions to evaluate on, and that neither leaks into the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from dro_rl.data.files import MadeUpId
from dro_rl.errors import UserError
from dro_rl.normalise import normalise_question
from dro_rl.records import Example


@dataclass(frozen=True, slots=True)
class Split:
    """Examples to train on and held-out ones to evaluate on; neither is empty."""

    train: list[Example]
    evaluation: list[Example]


def hold_out(examples: Iterable[Example], held_out: int, limit: int | None, source: str) -> Split:
    """The last `held_out` examples for evaluation; of those before, the first `limit` to train on.

    Raises:
        UserError: nothing is left to train on.
    """
    train: list[Example] = []
    last: deque[Example] = deque()
    for example in examples:
        last.append(example)
        if len(last) > held_out:
            first = last.popleft()
            if limit is None or len(train) < limit:
                train.append(first)
    if not train:
        raise UserError(
            f"data.evaluation_questions ({held_out}) leaves nothing to train on: {source} has "
            f"{len(last)} questions; lower it, or set data.evaluation_path"
        )
    return Split(train, list(last))


def overlaps(split: Split) -> list[tuple[Example, Example]]:
    """(evaluation's, train's) for each evaluation example with an id or a question of train's.

    Questions are compared without regard to case, white space and final punctuation; ids only where
    the records have their own.
    """
    found: dict[str, tuple[Example, Example]] = {}
    for key in (_own_id, lambda example: normalise_question(example.question)):
        train = {key(example): example for example in split.train}
        for example in split.evaluation:
            known = train.get(key(example))
            if known is not None and key(example) is not None:
                found.setdefault(example.id, (example, known))
    return list(found.values())


def _own_id(example: Example) -> str | None:
    return None if isinstance(example.id, MadeUpId) else example.id


def check_disjoint(split: Split, source: str) -> None:
    """Refuse a question that is in both: its evaluation would measure memory.

    Raises:
        UserError: names the first such question and both ids.
    """
    found = overlaps(split)
    if not found:
        return
    held_out, known = found[0]
    others = f" ({len(found)} such questions)" if len(found) > 1 else ""
    raise UserError(
        f"{source}: question {held_out.question!r} is both in train (id {known.id!r}) and in "
        f"evaluation (id {held_out.id!r}){others}: remove it from one of them, or set "
        "data.allow_overlap: true"
    )
