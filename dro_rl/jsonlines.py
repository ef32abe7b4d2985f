"""JSON lines, each checked against a model; what is wrong is told with file and line."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from dro_rl.errors import UserError

Row = TypeVar("Row", bound=BaseModel)


def read_lines(path: str, model: type[Row], schema: str, setting: str) -> Iterator[tuple[str, Row]]:
    """(place, row) of every line that is not blank; a place reads "FILE, line 3".

    Args:
        schema: what a line should be, for the message.
        setting: what to set to another file, for the message.
    Raises:
        UserError: the file cannot be read, or a line does not fit the model.
    """
    try:
        with located(path).open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    place = f"{path}, line {number}"
                    yield place, _read(line.removeprefix(codecs.BOM_UTF8), model, place, schema)
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}: set {setting} to a file of JSON lines; {schema}"
        ) from error


def located(path: str) -> Path:
    """The path with a leading ~ spelt out.

    Raises:
        UserError: there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(
            f"cannot use {path}: there is no user of that name: write out the home folder"
        ) from error


def describe(error: ValidationError) -> str:
    """The first problem of a record, as "documents.2.text: Field required"."""
    problem = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    return f"{key}: {message}" if key else message


def _read(line: bytes, model: type[Row], place: str, schema: str) -> Row:
    try:
        return model.model_validate_json(line)
    except ValidationError as error:
        raise UserError(f"{place}: {describe(error)}; {schema}") from error
