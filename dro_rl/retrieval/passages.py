"""Reads passages, one after the other: JSON lines, DPR's tables, or what `datasets` loads."""

from __future__ import annotations

import csv
import gzip
import os
import re
import zlib
from collections.abc import Iterator
from typing import IO, Any

from pydantic import BaseModel, ConfigDict, field_validator

from dro_rl.errors import UserError
from dro_rl.jsonlines import located, read_lines
from dro_rl.records import Document

SCHEMA = 'a line is {"title": "...", "text": "..."}'
SETTING = "retrieval.corpus_path"
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")


class _Passage(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    title: str = ""
    text: str

    @field_validator("text")
    @classmethod
    def _not_blank(cls, text: str) -> str:
        if not text.strip():
            raise ValueError("must not be blank")
        return text


def read_passages(path: str) -> Iterator[Document]:
    """The passages of a file, in its order: DPR's table where its name says .tsv, else JSON lines
    {"title", "text"} (title is optional).

    Raises:
        UserError: the file is missing, cut short or not UTF-8, or a line is not a passage with
            text; names file and line.
    """
    if path.endswith((".tsv", ".tsv.gz")):
        yield from _read_dpr(path)
    else:
        for _, row in read_lines(path, _Passage, SCHEMA, SETTING):
            yield Document(row.title, row.text)


def is_dataset(path: str) -> bool:
    """Whether `datasets` has to load it: a folder, or what can only be a hub name."""
    place = located(path)
    is_file_name = path.removesuffix(".gz").endswith((".tsv", ".jsonl", ".json", ".txt"))
    is_folder, exists = os.path.isdir(place), os.path.exists(place)  # Path's raise at long names
    return is_folder or not (exists or is_file_name or not _HUB_NAME.fullmatch(path))


def open_dataset(path: str, configuration: str | None, split: str) -> Any:
    """A `datasets.Dataset` of passages, memory-mapped: saved by `save_to_disk`, a folder of data
    files, or a hub name.

    Raises:
        UserError: it cannot be loaded, or has no column `text`.
    """
    import datasets  # here because it takes a second to import

    folder = located(path)
    try:
        if any(os.path.isfile(folder / name) for name in ("state.json", "dataset_dict.json")):
            loaded = datasets.load_from_disk(str(folder))
            dataset = loaded[split] if isinstance(loaded, datasets.DatasetDict) else loaded
        else:
            name = str(folder) if os.path.isdir(folder) else path
            dataset = datasets.load_dataset(name, configuration, split=split)
    except Exception as error:  # the hub's client raises a dozen unrelated kinds
        raise UserError(
            f"{SETTING}: cannot load {path}, split {split}, with datasets: {error}. Check "
            "retrieval.corpus_configuration and corpus_split; without network access, give a file"
        ) from error
    if "text" not in dataset.column_names:
        raise UserError(
            f"{SETTING}: {path} has the columns {', '.join(dataset.column_names)}; a passage is "
            "in a column text, its title, if any, in a column title"
        )
    return dataset


def read_dataset(dataset: Any, path: str) -> Iterator[Document]:
    """Its passages, in order.

    Raises:
        UserError: a passage without text; names its row.
    """
    columns = [name for name in ("title", "text") if name in dataset.column_names]
    number = 0
    for batch in dataset.select_columns(columns).iter(batch_size=1000):
        titles = batch.get("title", [""] * len(batch["text"]))
        for title, text in zip(titles, batch["text"], strict=True):
            if not isinstance(text, str) or not text.strip():
                raise UserError(f"{path}, row {number}: text must not be blank")
            yield Document(title or "", text)
            number += 1


def _read_dpr(path: str) -> Iterator[Document]:
    """The table of DPR (Karpukhin et al., 2020), psgs_w100.tsv: id, text and title, with a head."""
    place = "its beginning"
    try:
        with _open_text(path) as file:
            rows = csv.reader(file, delimiter="\t")
            head = next(rows, [])
            if sorted(head) != ["id", "text", "title"]:
                raise UserError(
                    f"{path}: begins with {head[:5]}, not with DPR's head of id, text and title "
                    "joined by tabs; JSON lines have another ending than .tsv"
                )
            title, text = head.index("title"), head.index("text")
            for row in rows:
                place = f"line {rows.line_num}"
                if len(row) != 3 or not row[text].strip():
                    raise UserError(
                        f"{path}, {place}: {len(row)} columns of {', '.join(head)}; there must be "
                        "three, and text must not be blank"
                    )
                yield Document(row[title], row[text])
    except csv.Error as error:
        raise UserError(f"{path}, after {place}: {error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}, after {place}: is not UTF-8: {error.reason}") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(
            f"{path}, after {place}: cut short or not gzip ({error}): download it again"
        ) from error
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}: set {SETTING} to a file of passages"
        ) from error


def _open_text(path: str) -> IO[str]:
    place = located(path)
    if path.endswith(".gz"):
        return gzip.open(place, "rt", encoding="utf-8", newline="")
    return place.open(encoding="utf-8", newline="")
