"""Token sequences packed so that what they have in common stands once.

Sequences that begin alike form a tree: a *trie* over token ids. Its nodes are laid out depth first
in one row, each sequence after the first contributing only its *tail*, what the one before it does
not begin with. A token sees another when that stands on its own path to the root:

    sees(i, j)  =  j <= i  and  i < end[j]        (end[j]: where the subtree of token j ends)

which holds across trees too, so any number of trees share a row with no padding between them. One
prompt with m completions (the selector) is a trie that forks once; m prompts with common beginnings
(the generator) fork anywhere. Shape suffixes: N packed tokens, R places where logits are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Tokens = Sequence[int]

_WORTH_SHARING = 1 / 8
"""Least share of a sequence that must be common for it to join a tree. Below it (a template's first
words) the tokens saved cost more than they are worth: a prompt alone has the cheapest attention."""

_SMALL = 256
"""Tokens up to which tails are attended together under one mask, rather than one call each."""


@dataclass(frozen=True, slots=True)
class Block:
    """Packed tokens [start, stop) that are attended in one call, to `ancestors` and themselves.

    `island` numbers the run of tokens that the block belongs to; no token sees another island's.
    `causal` blocks are one tail without ancestors and need no mask.
    """

    start: int
    stop: int
    ancestors: np.ndarray
    island: int
    causal: bool


@dataclass(frozen=True, slots=True)
class Trie:
    """Packed sequences.

    ids_N, depths_N: token ids, and each token's position in its sequence. end_N: see above.
    paths: for every sequence, in the order given, where its tokens stand.
    blocks: a partition of the row, in its order.
    """

    ids_N: np.ndarray
    depths_N: np.ndarray
    end_N: np.ndarray
    paths: tuple[np.ndarray, ...]
    blocks: tuple[Block, ...]

    def __len__(self) -> int:
        return len(self.ids_N)

    def islands(self) -> list[int]:
        """Tokens of each island, in order; they add up to N."""
        sizes = [0] * (self.blocks[-1].island + 1)
        for block in self.blocks:
            sizes[block.island] += block.stop - block.start
        return sizes

    def sees(self, queries: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """(queries, keys) bool: which packed tokens see which."""
        q, k = queries[:, None], keys[None]
        return (k <= q) & (q < self.end_N[keys][None])


def pack(sequences: Sequence[Tokens]) -> Trie:
    """At least one sequence, each of at least one token; equal ones stand once."""
    arrays = [np.asarray(s, dtype=np.int64) for s in sequences]
    tails = _tails(sequences, arrays)
    total = tails[-1].stop
    ids, depths, end = (np.empty(total, dtype=np.int64) for _ in range(3))
    paths: list[np.ndarray] = [np.empty(0, dtype=np.int64)] * len(sequences)
    path = paths[0]
    for tail in tails:
        end[path[tail.fork :]] = tail.start  # what the sequence before had beyond the fork is over
        path = np.concatenate([path[: tail.fork], np.arange(tail.start, tail.stop)])
        paths[tail.sequence] = path
        ids[tail.start : tail.stop] = arrays[tail.sequence][tail.fork :]
        depths[tail.start : tail.stop] = np.arange(tail.fork, len(path))
    end[path] = total
    return Trie(ids, depths, end, tuple(paths), tuple(_blocks(tails, paths)))


def packed_length(sequences: Sequence[Tokens]) -> int:
    """Tokens of `pack(sequences)`."""
    return _tails(sequences, [np.asarray(s, dtype=np.int64) for s in sequences])[-1].stop


@dataclass(frozen=True, slots=True)
class _Tail:
    """Tokens [start, stop) that a sequence adds to the row, from its depth `fork` on."""

    sequence: int
    fork: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


def _tails(sequences: Sequence[Tokens], arrays: Sequence[np.ndarray]) -> list[_Tail]:
    """In lexicographic order, which is depth first."""
    tails: list[_Tail] = []
    before, stop = np.empty(0, dtype=np.int64), 0
    for i in sorted(range(len(sequences)), key=lambda i: tuple(sequences[i])):
        shared = _common(before, arrays[i])
        fork = shared if shared >= _WORTH_SHARING * len(arrays[i]) else 0
        tails.append(_Tail(i, fork, stop, stop + len(arrays[i]) - fork))
        before, stop = arrays[i], tails[-1].stop
    return tails


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """Leading elements that are equal."""
    n = min(len(a), len(b))
    differ = np.flatnonzero(a[:n] != b[:n])
    return int(differ[0]) if len(differ) else n


def _blocks(tails: Sequence[_Tail], paths: Sequence[np.ndarray]) -> list[Block]:
    """Short tails that follow each other are merged; a long one with ancestors is cut, since under
    a mask every token pays for the whole block."""
    blocks: list[Block] = []
    island, group = -1, list[_Tail]()

    def flush() -> None:
        nonlocal island
        if not group or group[0].start == group[-1].stop:
            group.clear()
            return
        first, stop = group[0], group[-1].stop
        island += first.fork == 0
        ancestors = paths[first.sequence][: first.fork]
        if first.fork == 0 and len(group) == 1:
            blocks.append(Block(first.start, stop, ancestors, island, True))
        else:
            for start in range(first.start, stop, _SMALL):
                cut = min(start + _SMALL, stop)
                inside = np.arange(first.start, start)
                keys = np.concatenate([ancestors, inside])
                blocks.append(Block(start, cut, keys, island, False))
        group.clear()

    for tail in tails:
        fits = bool(group) and tail.stop - group[0].start <= _SMALL
        if not (fits and (group[0].fork == 0 or tail.fork > 0)):
            flush()
        group.append(tail)
    flush()
    return blocks
