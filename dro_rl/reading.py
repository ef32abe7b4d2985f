"""What a policy makes of rollouts, under the weights of now: read, and not learned from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from dro_rl.objective import Objective
from dro_rl.passes import Question
from dro_rl.policy.completion import AnyCompletion
from dro_rl.records import Rollout

T = TypeVar("T")


def score(policy: Objective, rollouts: Sequence[Rollout]) -> list[list[float]]:
    """log p of every selection [nats]: one list a question."""
    return _read(policy, rollouts, lambda some: policy.likelihood.of(some).tolist())


def values(policy: Objective, rollouts: Sequence[Rollout]) -> list[tuple[tuple[float, ...], ...]]:
    """What the value head gives before every token of every selection, a tuple a question."""
    head = policy.value_head
    assert head is not None

    def read(some: Sequence[AnyCompletion]) -> list[tuple[float, ...]]:
        _, values = policy.with_values(some, head)
        rows = zip(values.tolist(), some, strict=True)
        return [tuple(row[: len(c.token_ids)]) for row, c in rows]

    return [tuple(rows) for rows in _read(policy, rollouts, read)]


def _read(
    policy: Objective,
    rollouts: Sequence[Rollout],
    read: Callable[[Sequence[AnyCompletion]], list[T]],
) -> list[list[T]]:
    """Of every selection of every question; equal ones of a question are read once."""
    questions = [
        Question(r.example.id, [policy.selection(r, ids) for ids in _distinct_ids(r)])
        for r in rollouts
    ]

    def work(numbers: list[int]) -> list[tuple[int, list[T]]]:
        some = [c for i in numbers for c in questions[i].completions]
        found = iter(read(some))
        rows = []
        for i in numbers:
            table = {ids: next(found) for ids in _distinct_ids(rollouts[i])}
            rows.append((i, [table[s.token_ids] for s in rollouts[i].selections]))
        return rows

    with policy.reading():
        done = policy.passes.over(questions, work, lambda i: read(questions[i].completions[:1]))
    rows = dict(row for part in done for row in part)
    return [rows[i] for i in range(len(rollouts))]


def _distinct_ids(rollout: Rollout) -> list[tuple[int, ...]]:
    """The different selections of a group, as tokens, in the order of their first appearance."""
    return list(dict.fromkeys(s.token_ids for s in rollout.selections))
