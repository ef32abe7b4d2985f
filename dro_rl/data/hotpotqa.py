"""HotpotQA (Yang et al., EMNLP 2018, arXiv 1809.09600) in both layouts it is published in.

The publishers' file is a JSON list of {"_id", "question", "answer", "supporting_facts": [[title,
sentence]], "context": [[title, [sentences]]]}. The hub's layout is parquet with the same content
in columns ("id", and "supporting_facts" and "context" as structs of lists), one folder a
configuration. A paragraph is gold when one of the supporting facts is in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dro_rl.data.split import (
    Split,
    Text,
    check_disjoint,
    check_not_empty,
    check_unique,
    split_files,
)
from dro_rl.data_sections import HotpotData
from dro_rl.errors import UserError
from dro_rl.jsonlines import describe
from dro_rl.records import Document, Example

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


class _Question(BaseModel):
    """The publishers' record; what is not used (type, level) is ignored."""

    model_config = ConfigDict(extra="ignore")

    id: Text = Field(alias="_id")
    question: Text
    answer: Text
    supporting_facts: list[tuple[str, int]]
    context: list[tuple[str, list[str]]]


def load_hotpotqa(data: HotpotData) -> Split:
    """HotpotQA's questions, with their paragraphs as candidates.

    Raises:
        UserError: a file, folder or data set cannot be read, a record is not HotpotQA's (named by
            its position and key), or nothing says what to evaluate on.
    """
    split = split_files(data, read_publishers) if data.path.endswith(".json") else _load_hub(data)
    # Its publishers' ids are unique over train and dev, so an id on both sides is a mix-up.
    check_disjoint(split, lambda example: example.id, data.path)
    return split


def read_publishers(path: str) -> list[Example]:
    """All questions of a file in the publishers' format.

    Raises:
        UserError: the file is missing, is not a JSON list, or holds a bad record.
    """
    try:
        rows = json.loads(Path(path).expanduser().read_bytes())
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}: set data.path and data.evaluation_path to "
            "HotpotQA's .json files"
        ) from error
    except ValueError as error:
        raise UserError(
            f"{path} is not JSON ({error}): give HotpotQA's own .json file; JSON lines are read "
            "with data.kind: jsonl"
        ) from error
    if not isinstance(rows, list):
        raise UserError(f"{path} must hold a JSON list of questions, not {type(rows).__name__}")
    return _examples(rows, path)


def _load_hub(data: HotpotData) -> Split:
    train = _read_hub(data, data.train_split, data.train_questions)
    if data.evaluation_path is None:
        return Split(train, _read_hub(data, data.evaluation_split, data.evaluation_questions))
    return Split(train, read_publishers(data.evaluation_path)[: data.evaluation_questions])


def _read_hub(data: HotpotData, split: str, limit: int | None) -> list[Example]:
    dataset = _open_hub(data, split)
    if limit is not None:
        dataset = dataset.select(range(min(limit, len(dataset))))
    return _examples(map(_from_hub, dataset), f"{data.path}, {data.configuration}/{split}")


def _open_hub(data: HotpotData, split: str) -> Any:
    where, options = _locate(data, split)
    import datasets  # here because it takes a second to import

    try:
        return datasets.load_dataset(where, split=split, **options)
    except Exception as error:  # the hub's client raises a dozen unrelated kinds
        raise UserError(
            f"cannot load data set {data.path}, {data.configuration}/{split}: {error}. Without "
            "network access, set data.path to HotpotQA's .json file or to a downloaded folder"
        ) from error


def _locate(data: HotpotData, split: str) -> tuple[str, dict[str, Any]]:
    """What `datasets.load_dataset` has to be told: a local folder's files, or a hub name."""
    folder = Path(data.path).expanduser()
    if folder.is_dir():
        files = sorted((folder / data.configuration).glob(f"{split}-*.parquet"))
        if not files:
            raise UserError(
                f"{folder / data.configuration} holds no {split}-*.parquet: check data.path, "
                "data.configuration, data.train_split and data.evaluation_split"
            )
        return "parquet", {"data_files": {split: [str(file) for file in files]}}
    if folder.exists() or not HUB_NAME.fullmatch(data.path):
        raise UserError(
            f"data.path: {data.path} is neither HotpotQA's .json file, nor a folder in the hub's "
            "layout, nor a hub name; JSON lines are read with data.kind: jsonl"
        )
    return data.path, {"name": data.configuration}


def _from_hub(row: Mapping[str, Any]) -> dict[str, Any]:
    """The hub's columns as the publishers' record."""
    facts, context = row.get("supporting_facts"), row.get("context")
    return {
        **row,
        "_id": row.get("id"),
        "supporting_facts": _pairs(facts, "title", "sent_id"),
        "context": _pairs(context, "title", "sentences"),
    }


def _pairs(struct: Any, first: str, second: str) -> Any:
    """A struct of two lists as pairs; anything else is left for validation to refuse."""
    try:
        return list(zip(struct[first], struct[second], strict=True))
    except (KeyError, TypeError, ValueError):
        return struct


def _examples(rows: Iterable[Any], source: str) -> list[Example]:
    placed = []
    for number, row in enumerate(rows, start=1):
        place = f"{source}, question {number}"
        try:
            placed.append((place, _example(_Question.model_validate(row))))
        except ValidationError as error:
            raise UserError(
                f"{place}: {describe(error)}; this is not HotpotQA's format with answers and "
                "supporting facts (its hidden test set has neither)"
            ) from error
    examples = [example for _, example in placed]
    check_not_empty(examples, source)
    check_unique(placed)
    return examples


def _example(row: _Question) -> Example:
    gold = {title for title, _ in row.supporting_facts}
    documents = tuple(
        # Sentences carry their leading space in some copies and not in others.
        Document(title, " ".join(filter(None, map(str.strip, sentences))), title in gold)
        for title, sentences in row.context
    )
    return Example(row.id, row.question, (row.answer,), documents)
