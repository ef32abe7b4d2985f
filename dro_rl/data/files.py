"""Publishers' files record by record: a JSON list or JSON lines, either of them gzipped or not.

Which of them a file is shows in its first bytes, not in its name. A list is read with ijson, one
record at a time, so that a file of gigabytes never sits in memory beside what is made of it.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ijson
from ijson.common import ObjectBuilder

from dro_rl.errors import UserError
from dro_rl.jsonlines import located

_GZIP = b"\x1f\x8b"
_DEEPEST = 100  # levels of brackets in a list; data sets have a handful


class MadeUpId(str):
    """An id that says where a question stands, and nothing of the question itself: two files of one
    name have the same ids."""


@dataclass(frozen=True, slots=True)
class Record:
    """What a publisher says of a question.

    `place` tells the user where it stands ("FILE, line 3"); `name` is an id for records that have
    none of their own.
    """

    place: str
    name: MadeUpId
    content: Any


def read_records(path: str) -> Iterator[Record]:
    """The records of a file in order.

    Raises:
        UserError: it cannot be read, is cut short, or is neither JSON nor UTF-8; names the place.
    """
    done = 0
    try:
        with located(path).open("rb") as file:
            for record in _records(_plain(file), path):
                done += 1
                yield record
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(
            f"{path}: its gzip data is damaged after record {done} ({error}): download it again"
        ) from error
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}: set data.path (or data.evaluation_path) to "
            "the data set's file, or to what else docs/data.md says that it may be"
        ) from error


def _plain(file: io.BufferedReader[Any]) -> io.BufferedReader[Any]:
    """The file's bytes, decompressed, without a byte order mark."""
    stream = file
    if stream.peek(2).startswith(_GZIP):
        stream = io.BufferedReader(gzip.GzipFile(fileobj=stream))
    if stream.peek(3).startswith(codecs.BOM_UTF8):
        stream.read(len(codecs.BOM_UTF8))
    return stream


def _records(stream: io.BufferedReader[Any], path: str) -> Iterator[Record]:
    is_list = stream.peek(64).lstrip().startswith(b"[")
    unit, contents = (
        ("question", _list(stream, path)) if is_list else ("line", _lines(stream, path))
    )
    for number, content in contents:
        name = MadeUpId(f"{Path(path).name}-{number}")
        yield Record(f"{path}, {unit} {number}", name, content)


def _list(stream: io.BufferedReader[Any], path: str) -> Iterator[tuple[int, Any]]:
    number = 0
    try:
        for number, content in enumerate(_items(stream), start=1):
            yield number, content
    except _TooDeepError as error:
        raise UserError(
            f"{path}, question {number + 1}: is nested more than {_DEEPEST} levels deep: the file "
            "is damaged, or is not of this kind"
        ) from error
    except ijson.JSONError as error:
        what = "UTF-8" if "UTF8" in str(error) else "JSON"
        raise UserError(
            f"{path}, question {number + 1}: is not {what} ({_first_line(error)}): the file is "
            "cut short or damaged, or is not of this kind"
        ) from error
    except UnicodeDecodeError as error:  # the parser lets half of a surrogate pair through
        raise UserError(
            f"{path}, question {number + 1}: is not UTF-8 ({error.reason}): save the file as UTF-8"
        ) from error


class _TooDeepError(Exception):
    pass


def _items(stream: io.BufferedReader[Any]) -> Iterator[Any]:
    """The items of a JSON list, as `ijson.items` has them, which keeps the path of every level that
    is open: memory that grows with the square of how deep they are."""
    depth, builder = 0, ObjectBuilder()
    for event, value in ijson.basic_parse(stream, use_float=True):
        if event in ("start_map", "start_array"):
            depth += 1
            if depth > _DEEPEST:
                raise _TooDeepError
            if depth == 1:
                continue
        elif event in ("end_map", "end_array"):
            depth -= 1
            if depth == 0:
                continue
        builder.event(event, value)
        if depth == 1:
            yield builder.value
            builder = ObjectBuilder()


def _first_line(error: ijson.JSONError) -> str:
    # ijson hands bytes through where they cannot be decoded.
    told = error.args[0]
    text = told.decode(errors="replace") if isinstance(told, bytes) else str(told)
    return text.splitlines()[0].strip() if text else "no reason given"


def _lines(stream: io.BufferedReader[Any], path: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(stream, start=1):
        if line.strip():
            yield number, _decode(line, f"{path}, line {number}")


def _decode(line: bytes, place: str) -> Any:
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(
            f"{place}: is not UTF-8 (byte {line[error.start]:#04x} at position {error.start + 1}): "
            "save the file as UTF-8, for instance with iconv"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{place}: Invalid JSON ({error}): a file is one JSON list, or one JSON object a line"
        ) from error
