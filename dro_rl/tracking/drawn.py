"""Selections that were drawn, and the questions that they were drawn for: a run's Parquet files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dro_rl import durable
from dro_rl.records import Example, ScoredRollout, WeightedRollout
from dro_rl.tracking import stored


def write_selections(
    path: Path | str,
    iteration: int,
    scored: Sequence[ScoredRollout],
    weighted: Sequence[WeightedRollout],
) -> None:
    """A row a selection, its reward and its weights with it; those of a question stand together."""
    rows = [
        {
            "iteration": iteration,
            "version": s.rollout.version,
            "example": s.rollout.example.id,
            "question": s.rollout.example.question,
            "sample": i,
            "selection": z.text,
            "documents": list(z.documents),
            "malformed": z.malformed,
            "logq": z.logp,
            "log_reward": s.log_rewards[i],
            "selector_weight": w.selector[i],
            "generator_weight": w.generator[i],
        }
        for s, w in zip(scored, weighted, strict=True)
        for i, z in enumerate(s.rollout.selections)
    ]
    _write(Path(path), rows)


def write_questions(path: Path | str, examples: Sequence[Example]) -> None:
    """A row a question, with its candidates."""
    _write(Path(path), [_question(example) for example in examples])


def groups(
    questions: Path | str, selections: Path | str
) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """The rows of both files: a question, and its selections.

    Raises:
        UserError: a file is damaged.
    """
    asked = stored.read_parquet(questions, stored.Question)
    group: list[dict[str, Any]] = []
    for row in stored.read_parquet(selections, stored.Drawn):
        if row["sample"] == 0 and group:
            yield _of_group(asked, questions), group
            group = []
        group.append(row)
    if group:
        yield _of_group(asked, questions), group


def _of_group(questions: Iterator[dict[str, Any]], path: Path | str) -> dict[str, Any]:
    question = next(questions, None)
    if question is None:
        raise stored.damaged(path, "it has fewer questions than were sampled for")
    return question


def _question(example: Example) -> dict[str, Any]:
    return {
        "example": example.id,
        "question": example.question,
        "answers": list(example.answers),
        "candidates": [
            {"title": d.title, "text": d.text, "is_gold": d.is_gold} for d in example.candidates
        ],
        "scores": list(example.scores),
    }


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist(rows)
    # With checksums a reader is told of a damaged page, and not shown what it has become.
    durable.write_file(path, lambda to: pq.write_table(table, to, write_page_checksum=True))
