"""Makes an index of bm25s block by block: bm25s itself holds all words of a corpus in memory."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import bm25s
import numpy as np

from dro_rl.errors import UserError

_ENTRIES = 4_000_000  # sorted at once in the second pass


@dataclass
class _Counts:
    """What the first pass finds out beside the entries that it writes."""

    vocabulary: dict[str, int] = field(default_factory=dict)
    lengths: list[np.ndarray] = field(default_factory=list)  # of passages [words]
    passages: int = 0
    entries: int = 0


def build_in_blocks(
    blocks: Iterable[list[list[str]]], scorer: bm25s.BM25, scratch: Path
) -> bm25s.BM25:
    """The scorer (Lucene's variant), as `scorer.index` would make it of all words.

    Two passes: the first writes a (word, passage, count) for every word of a passage, the second
    scores them and puts them in the order of words. In memory are the vocabulary, some 30 bytes a
    passage (its length, and what its score is divided by) and one block.

    Args:
        blocks: the words of some passages, many times.
        scratch: an empty folder for memory-mapped files, of which the scorer's arrays are two.
    Raises:
        UserError: there is no word in any of them.
    """
    counts = _Counts()
    with (scratch / "entries").open("wb") as file:
        for block in blocks:
            _count(block, counts).tofile(file)
    if not counts.entries:
        raise UserError("the corpus has no words to search: all documents are blank")
    lengths = np.concatenate(counts.lengths)
    shape = (counts.entries, 3)
    entries = np.memmap(scratch / "entries", np.int32, mode="r", shape=shape)
    scorer.scores = {
        **_columns(entries, lengths, counts, scorer, scratch),
        "num_docs": len(lengths),
    }
    scorer.vocab_dict, scorer.nonoccurrence_array = counts.vocabulary, None
    return scorer


def _count(block: list[list[str]], counts: _Counts) -> np.ndarray:
    """Rows of (word, passage, count), int32, ordered by passage."""
    vocabulary = counts.vocabulary
    words = np.fromiter(
        (vocabulary.setdefault(word, len(vocabulary)) for own in block for word in own), np.int64
    )
    lengths = np.array([len(own) for own in block], dtype=np.int32)
    rows = np.arange(counts.passages, counts.passages + len(block))
    passages = np.repeat(rows, lengths)
    pairs, times = np.unique(passages << 32 | words, return_counts=True)
    counts.lengths.append(lengths)
    counts.passages += len(block)
    counts.entries += len(pairs)
    return np.stack([pairs & 0xFFFFFFFF, pairs >> 32, times], axis=1).astype(np.int32)


def _columns(
    entries: np.ndarray, lengths: np.ndarray, counts: _Counts, scorer: bm25s.BM25, scratch: Path
) -> dict[str, np.ndarray]:
    """Scores and passages in the order of words, and where each word's begin."""
    size = len(counts.vocabulary)
    containing = np.zeros(size, dtype=np.int64)
    for start in range(0, len(entries), _ENTRIES):
        containing += np.bincount(entries[start : start + _ENTRIES, 0], minlength=size)
    begin = np.concatenate([[0], np.cumsum(containing)])
    rarity = np.array(
        [math.log(1 + (len(lengths) - n + 0.5) / (n + 0.5)) for n in containing.tolist()]
    )
    norms = scorer.k1 * (1 - scorer.b + scorer.b * lengths / max(lengths.mean(), 1e-9))
    shape, to = (len(entries),), begin[:-1].copy()
    data = np.lib.format.open_memmap(scratch / "data.npy", "w+", np.float32, shape)
    indices = np.lib.format.open_memmap(scratch / "indices.npy", "w+", np.int32, shape)
    for start in range(0, len(entries), _ENTRIES):
        some = np.asarray(entries[start : start + _ENTRIES])
        words, passages, times = some[np.argsort(some[:, 0], kind="stable")].T
        firsts = np.flatnonzero(np.diff(words, prepend=-1))
        runs = np.diff(firsts, append=len(words))
        places = to[words] + np.arange(len(words)) - np.repeat(firsts, runs)
        to[words[firsts]] += runs
        data[places] = rarity[words] * times / (norms[passages] + times)
        indices[places] = passages
    return {"data": data, "indices": indices, "indptr": begin}
