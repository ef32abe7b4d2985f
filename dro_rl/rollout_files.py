"""Rollouts, and what became of them, to files and back, bit by bit.

A row a question. Their examples are not in it: they follow from the recipe and the iteration.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dro_rl.errors import UserError
from dro_rl.records import (
    Example,
    Rollout,
    ScoredRollout,
    Selection,
    TokenTargets,
    WeightedRollout,
)

_IDS, _NUMBERS = pa.list_(pa.int32()), pa.list_(pa.float64())
_SELECTION = pa.struct(
    {
        "text": pa.string(),
        "token_ids": _IDS,
        "logps": _NUMBERS,
        "documents": _IDS,
        "malformed": pa.bool_(),
    }
)
_ROLLOUT = pa.schema(
    {
        "example": pa.string(),
        "prompt_ids": _IDS,
        "version": pa.int64(),
        "truncated_documents": pa.int64(),
        "selections": pa.list_(_SELECTION),
    }
)
_TARGETS = pa.struct({"advantages": _NUMBERS, "returns": _NUMBERS, "values": _NUMBERS})
_WEIGHTED = pa.schema(
    {
        "log_rewards": _NUMBERS,
        "answer_tokens": pa.int64(),
        "selector": _NUMBERS,
        "generator": _NUMBERS,
        "tokens": pa.list_(_TARGETS),
    }
)


def write_rollouts(path: Path, rollouts: Sequence[Rollout]) -> None:
    """A file of rollouts."""
    rows = [
        {
            "example": r.example.id,
            "prompt_ids": r.prompt_ids,
            "version": r.version,
            "truncated_documents": r.truncated_documents,
            "selections": [_plain(z, _SELECTION) for z in r.selections],
        }
        for r in rollouts
    ]
    pq.write_table(pa.Table.from_pylist(rows, _ROLLOUT), path)


def read_rollouts(path: Path, examples: Sequence[Example]) -> list[Rollout]:
    """What `write_rollouts` wrote, of these examples in their order.

    Raises:
        UserError: it was written of others.
    """
    rows = pq.read_table(path).to_pylist()
    if [row["example"] for row in rows] != [example.id for example in examples]:
        raise UserError(
            f"{path}: was sampled for other questions than the run's data now gives: bring the "
            "data back to what it was, or start a new run (tracking.run_dir=...)"
        )
    return [
        Rollout(
            example,
            tuple(row["prompt_ids"]),
            tuple(_selection(z) for z in row["selections"]),
            row["version"],
            row["truncated_documents"],
        )
        for example, row in zip(examples, rows, strict=True)
    ]


def write_weighted(
    path: Path, scored: Sequence[ScoredRollout], weighted: Sequence[WeightedRollout]
) -> None:
    """A file of the log-rewards and coefficients of rollouts."""
    rows = [
        {
            "log_rewards": s.log_rewards,
            "answer_tokens": s.answer_tokens,
            "selector": w.selector,
            "generator": w.generator,
            "tokens": [_plain(t, _TARGETS) for t in w.tokens],
        }
        for s, w in zip(scored, weighted, strict=True)
    ]
    pq.write_table(pa.Table.from_pylist(rows, _WEIGHTED), path)


def read_weighted(
    path: Path, rollouts: Sequence[Rollout]
) -> tuple[list[ScoredRollout], list[WeightedRollout]]:
    """What `write_weighted` wrote, of the first of these rollouts."""
    rows = pq.read_table(path).to_pylist()
    scored = [
        ScoredRollout(rollout, tuple(row["log_rewards"]), row["answer_tokens"])
        for rollout, row in zip(rollouts, rows, strict=False)
    ]
    weighted = [
        WeightedRollout(
            rollout,
            tuple(row["selector"]),
            tuple(row["generator"]),
            tuple(TokenTargets(**{k: tuple(v) for k, v in t.items()}) for t in row["tokens"]),
        )
        for rollout, row in zip(rollouts, rows, strict=False)
    ]
    return scored, weighted


def _plain(record: Any, struct: pa.StructType) -> dict[str, Any]:
    return {name: getattr(record, name) for name in struct.names}


def _selection(row: dict[str, Any]) -> Selection:
    return Selection(
        row["text"],
        tuple(row["token_ids"]),
        tuple(row["logps"]),
        tuple(row["documents"]),
        row["malformed"],
    )
