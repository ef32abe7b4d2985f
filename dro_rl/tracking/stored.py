"""What a run wrote, read back: every file is checked, so that a damaged one is named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from dro_rl.errors import UserError
from dro_rl.jsonlines import describe

_Figure = float | None
_Place = Annotated[int, Field(ge=0, lt=10_000)]  # of a document among the candidates


class Stored(BaseModel):
    """Checks an object, which is then used as it was written; further keys may be there."""

    model_config = ConfigDict(extra="ignore", strict=True)


class _Figures(Stored):
    em: _Figure
    f1: _Figure
    recall_1: _Figure = Field(alias="recall@1")
    recall_3: _Figure = Field(alias="recall@3")
    recall_5: _Figure = Field(alias="recall@5")
    gold_recall: _Figure
    bound: _Figure
    reward: _Figure = None


class Iteration(Stored):
    """evaluation/iteration-NNNN.json, and a line of metrics.jsonl."""

    iteration: int = Field(ge=0)


class Summary(Iteration, _Figures):
    """The first of them, with what a report shows."""

    questions: int


class _Drawn(Stored):
    documents: list[_Place]
    logp: float
    log_likelihood: float | None = None  # or, without a generator:
    log_reward: float | None = None  # null where the reward is 0


class Answered(_Figures):
    """A line of evaluation/iteration-NNNN.jsonl."""

    example: str
    question: str
    answers: list[str]
    answer: str | None
    malformed: bool
    documents: list[_Place]
    samples: list[_Drawn] = Field(min_length=1)


class _Candidate(Stored):
    title: str
    text: str
    is_gold: bool


class Question(Stored):
    """A row of evaluation/questions.parquet and of rollouts/iteration-NNNN-questions.parquet."""

    example: str
    question: str
    answers: list[str]
    candidates: list[_Candidate]
    scores: list[float]


class Shown(Stored):
    """A line of evaluation/iteration-NNNN.jsonl, of which its text is read."""

    question: str
    answers: list[str]
    answer: str | None
    selected: list[_Candidate]


class Weight(Stored):
    """The column of a row of rollouts/iteration-NNNN.parquet that is read alone."""

    selector_weight: float


class Drawn(Weight):
    """A row of it."""

    example: str
    sample: int
    selection: str
    documents: list[_Place]
    malformed: bool
    logq: float
    log_reward: float


def damaged(place: Path | str, what: object) -> UserError:
    """The error of a file that cannot be used."""
    return UserError(f"{place}: is damaged ({what}): put a whole copy of it back")


def read_json(path: Path, model: type[Stored]) -> dict[str, Any]:
    """A file's JSON object.

    Raises:
        UserError: it cannot be read, or is not such an object.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise damaged(path, error.strerror) from error
    return checked(_decoded(content, path), model, path)


def read_lines(path: Path, model: type[Stored], *, torn: bool = False) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file's lines; with `torn`, a last line without an end is left out.

    Raises:
        UserError: it cannot be read, or a line is not such an object; names file and line.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if torn and not line.endswith(b"\n"):
                    return
                yield read_line(line, f"{path}, line {number}", model)
    except OSError as error:
        raise damaged(path, error.strerror) from error


def read_line(line: bytes, place: str, model: type[Stored]) -> dict[str, Any]:
    """The JSON object of a line.

    Raises:
        UserError: it is not such an object; names the place.
    """
    return checked(_decoded(line, place), model, place)


def read_parquet(path: Path | str, model: type[Stored]) -> Iterator[dict[str, Any]]:
    """The rows one after the other, of the columns that are checked: a file may be larger than what
    a reader wants of it.

    Raises:
        UserError: it cannot be read, or a row is none of these.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            for batch in file.iter_batches(512, columns=[*model.model_fields]):
                for row in batch.to_pylist():
                    number += 1
                    yield checked(row, model, f"{path}, row {number}")
    except (OSError, pa.ArrowException, ValueError) as error:
        raise damaged(path, error) from error


def _decoded(content: bytes, place: Path | str) -> Any:
    try:
        return from_json(content)  # unlike json.loads, it takes no half of a surrogate pair
    except ValueError as error:
        raise damaged(place, f"not JSON: {error}") from error


def checked(row: Any, model: type[Stored], place: Path | str) -> dict[str, Any]:
    """The object itself.

    Raises:
        UserError: it is none of these; names the place and the first key that is wrong.
    """
    try:
        model.model_validate(row)
    except ValidationError as error:
        raise damaged(place, describe(error)) from error
    return row
