"""What was found out about selections, so that nothing is found out twice.

A question comes again with its candidates in another order, so what counts is which documents were
selected, in their order, and not their numbers.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from dro_rl.records import Example, Rollout

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class New:
    """Selections of one rollout that nothing is known of: its place, and theirs in the group."""

    rollout: int
    selections: tuple[int, ...]

    def of(self, rollouts: Sequence[Rollout]) -> Rollout:
        """The rollout with these selections alone."""
        whole = rollouts[self.rollout]
        return replace(whole, selections=tuple(whole.selections[i] for i in self.selections))


class Cache(Generic[T]):
    """A value a selection, for the weights that are current: whoever loads others calls `clear`.

    Args:
        size: most values that are kept (about 200 bytes each); the least recently used go first.
    """

    def __init__(self, size: int = 200_000) -> None:
        self.size = size
        self._values: OrderedDict[bytes, T] = OrderedDict()

    def clear(self) -> None:
        self._values.clear()

    def state(self) -> dict[str, T]:
        """What `restore` takes, in another process too; the last used at the end."""
        return {key.hex(): value for key, value in self._values.items()}

    def restore(self, state: Mapping[str, T]) -> None:
        self._values = OrderedDict((bytes.fromhex(k), v) for k, v in state.items())

    def look_up(
        self,
        rollouts: Sequence[Rollout],
        ask: Callable[[list[New]], Sequence[Sequence[T]]],
        advance: Callable[[int], None],
    ) -> list[list[T]]:
        """The value of every selection of every rollout.

        Args:
            ask: gives the values of those that are new, in order; equal ones are asked once.
            advance: is told how many rollouts have none that is new.
        """
        keys = [[_key(r.example, s.documents) for s in r.selections] for r in rollouts]
        found = {k: self._values[k] for row in keys for k in row if k in self._values}
        new = _new(keys, found)
        advance(len(rollouts) - len(new))
        for one, values in zip(new, ask(new) if new else (), strict=True):
            row = keys[one.rollout]
            found.update(zip((row[i] for i in one.selections), values, strict=True))
        for key, value in found.items():
            self._keep(key, value)
        return [[found[k] for k in row] for row in keys]

    def _keep(self, key: bytes, value: T) -> None:
        self._values[key] = value
        self._values.move_to_end(key)
        if len(self._values) > self.size:
            self._values.popitem(last=False)


def _new(keys: Sequence[Sequence[bytes]], found: dict[bytes, T]) -> list[New]:
    seen, new = set(found), list[New]()
    for place, row in enumerate(keys):
        firsts = {k: i for i, k in reversed(list(enumerate(row))) if k not in seen}
        if firsts:
            new.append(New(place, tuple(sorted(firsts.values()))))
            seen |= firsts.keys()
    return new


def _key(example: Example, documents: Sequence[int]) -> bytes:
    """Names the question, its answers and the selected documents in their order."""
    chosen = [example.candidates[i] for i in documents]
    text = repr((example.id, example.question, example.answers, chosen))
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()
