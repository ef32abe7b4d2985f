"""Data sets in the hub's layout, by name or from a downloaded folder, row by row."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dro_rl.data.files import MadeUpId, Record
from dro_rl.errors import UserError
from dro_rl.jsonlines import located
from dro_rl.sections.data import HubData

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def read_hub(data: HubData, path: str, split: str) -> Iterator[Record]:
    """The rows of a split in order. A folder's are streamed; a hub name's lie in the cache of
    `datasets`, memory-mapped, so that they are downloaded once.

    Raises:
        UserError: there is no such data set, or a row cannot be read.
    """
    source = ", ".join((path, "/".join(filter(None, (data.configuration, split)))))
    where, options = _locate(data, path, split)
    import datasets  # here because it takes a second to import

    try:
        rows = datasets.load_dataset(where, split=split, **options)
        for number, row in enumerate(rows, start=1):
            yield Record(f"{source}, question {number}", MadeUpId(f"{split}-{number}"), row)
    except Exception as error:  # the hub's client and pyarrow raise a dozen unrelated kinds
        raise UserError(
            f"cannot load data set {source}: {error}. Without network access, set data.path to "
            "the publishers' file or to a downloaded folder"
        ) from error


def _locate(data: HubData, path: str, split: str) -> tuple[str, dict[str, Any]]:
    """What `datasets.load_dataset` has to be told: a local folder's files, or a hub name."""
    folder = located(path)
    if os.path.isdir(folder):
        files = {split: [str(file) for file in _files(folder / (data.configuration or ""), split)]}
        return "parquet", {"data_files": files, "streaming": True}
    return path, {"name": data.configuration}


def _files(folder: Path, split: str) -> list[Path]:
    for place in (folder, folder / "data"):
        files = sorted(place.glob(f"{split}-*.parquet")) or sorted(place.glob(f"{split}.parquet"))
        if files:
            return files
    raise UserError(
        f"{folder} holds no {split}-*.parquet: check data.path, data.configuration, "
        "data.train_split and data.evaluation_split"
    )


def listed(value: Any) -> Any:
    """What the hub keeps as a struct of equally long lists, as the list of structs that it was.

    Anything else comes back as it is: for validation to take, or to refuse.
    """
    if not isinstance(value, dict):
        return value
    columns = list(value.values())
    if not all(isinstance(c, list) and len(c) == len(columns[0]) for c in columns):
        return value
    return [dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True)]
