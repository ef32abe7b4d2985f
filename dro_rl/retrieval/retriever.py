"""What every way to search a corpus has in common: index once, then search."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dro_rl.records import Document
from dro_rl.retrieval.corpus import Corpus
from dro_rl.retrieval.folders import damaged, digest, made_folder

Ranking = list[tuple[Document, float]]  # best first; a score is higher for the better document
Say = Callable[[str], object]
# Part of the name of kept candidates. Raise it when the same index is searched in another way.
_FORMAT = 1
AT_ONCE = 256  # questions that are ranked at once


class Retriever(ABC):
    """Searches one corpus: `index` comes first, then `search` and `rank`, at the end `close`."""

    kind: str

    def __init__(self, cache: Path, say: Say = lambda text: None) -> None:
        """
        Args:
            cache: where indexes are kept.
            say: told in a line what takes long.
        """
        self.cache, self.say = cache, say
        self.corpus: Corpus
        self.folder: Path
        self._is_open = False

    def index(self, corpus: Corpus) -> Path:
        """Make the index of a corpus, where it is not there yet; the folder that holds it.

        Raises:
            UserError: it cannot be made, or what is there is damaged.
        """

        def build(folder: Path) -> None:
            self.say(f"{self.kind}: indexing {len(corpus):,} passages")
            self._build(corpus, folder)

        makers = {"corpus": corpus.name, **self.makers()}
        self.folder = made_folder(self.cache, self.kind, makers, build)
        self._is_open = False
        self.corpus = corpus
        return self.folder

    def rank(self, questions: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best passages of each question, best first; some hundred questions at once, so that
        memory does not grow with their number.

        Returns:
            Rows of the corpus (int64, -1 where fewer were found) and their scores (float32), both
            [questions, min(k, passages)].
        Raises:
            UserError: the index is damaged.
        """
        if not self._is_open:
            try:
                self._open()
            except (OSError, ValueError, KeyError, EOFError) as error:
                raise damaged(self.folder, str(error) or type(error).__name__) from error
            self._is_open = True
        k = min(k, len(self.corpus))
        if not len(questions):
            return np.empty((0, k), dtype=np.int64), np.empty((0, k), dtype=np.float32)
        parts = [
            self._rank(questions[start : start + AT_ONCE], k)
            for start in range(0, len(questions), AT_ONCE)
        ]
        rows, scores = (np.concatenate(each) for each in zip(*parts, strict=True))
        return rows, scores

    def search(self, questions: Sequence[str], k: int) -> list[Ranking]:
        """The k best passages of each question with their scores, best first.

        Raises:
            UserError: the index is damaged.
        """
        return rankings(self.corpus, *self.rank(questions, k))

    def close(self) -> None:
        """Give back processes and memory; the next search opens the index again."""
        self._is_open = False

    @abstractmethod
    def makers(self) -> Mapping[str, Any]:
        """All that the index depends on beside its corpus, as plain values."""

    def search_makers(self) -> Mapping[str, Any]:
        """What the candidates depend on and the index does not, as plain values."""
        return {}

    @abstractmethod
    def _build(self, corpus: Corpus, folder: Path) -> None:
        """Fill an empty folder."""

    @abstractmethod
    def _open(self) -> None:
        """Load what `_rank` needs; an OSError, ValueError or KeyError means a damaged folder."""

    @abstractmethod
    def _rank(self, questions: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """As `rank`, of an open index, with at least one question and k at most the corpus."""


def rankings(corpus: Corpus, rows: np.ndarray, scores: np.ndarray) -> list[Ranking]:
    """Rows and scores with the passages they stand for; equal rows share one Document."""
    documents = {row: corpus[row] for row in np.unique(rows[rows >= 0]).tolist()}
    return [
        [(documents[row], score) for row, score in zip(own, scored, strict=True) if row >= 0]
        for own, scored in zip(rows.tolist(), scores.tolist(), strict=True)
    ]


def best(scores: np.ndarray, k: int) -> np.ndarray:
    """The positions of the k highest scores, equal ones in order; sorts no more than it must."""
    threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
    positions = np.flatnonzero(scores >= threshold)
    return positions[np.argsort(-scores[positions], kind="stable")][:k]


def kept_rank(
    retriever: Retriever, questions: Sequence[str], k: int, advance: Callable[[int], object]
) -> tuple[np.ndarray, np.ndarray]:
    """`retriever.rank`, kept in a folder that is named by questions, index and k.

    Raises:
        UserError: index or kept candidates are damaged.
    """

    def write(folder: Path) -> None:
        found = []
        for start in range(0, len(questions) or 1, AT_ONCE):
            found.append(retriever.rank(questions[start : start + AT_ONCE], k))
            advance(len(found[-1][0]))
        rows, scores = (np.concatenate(parts) for parts in zip(*found, strict=True))
        np.save(folder / "rows.npy", rows)
        np.save(folder / "scores.npy", scores)

    makers = {
        "format": _FORMAT,
        "index": retriever.folder.name,
        "search": dict(retriever.search_makers()),
        "k": k,
        "questions": digest(list(questions)),
    }
    folder = made_folder(retriever.cache, "candidates", makers, write)
    try:
        rows, scores = (
            np.load(folder / f"{name}.npy", allow_pickle=False) for name in ("rows", "scores")
        )
        return rows, scores
    except (OSError, ValueError, EOFError) as error:
        raise damaged(folder, str(error)) from error
