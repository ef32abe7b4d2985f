"""Reciprocal rank fusion (Cormack, Clarke and Buettcher, SIGIR 2009) of several retrievers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dro_rl.retrieval.corpus import Corpus
from dro_rl.retrieval.retriever import Retriever, Say
from dro_rl.sections.retrieval import Fusion


class FusionRetriever(Retriever):
    """score(d) = sum over retrievers of 1 / (constant + rank of d), over their first `depth`.

    A passage that none of them has among these is not found. Equal scores are in the order of the
    first retriever that found one of them.
    """

    kind = "fusion"

    def __init__(
        self,
        settings: Fusion,
        members: Sequence[Retriever],
        cache: Path,
        say: Say = lambda text: None,
    ) -> None:
        super().__init__(cache, say)
        self.settings, self.members = settings, members

    def index(self, corpus: Corpus) -> Path:
        for member in self.members:
            member.index(corpus)
        return super().index(corpus)

    def close(self) -> None:
        super().close()
        for member in self.members:
            member.close()

    def makers(self) -> Mapping[str, Any]:
        return {"of": [member.folder.name for member in self.members]}

    def search_makers(self) -> Mapping[str, Any]:
        return {
            "of": [dict(member.search_makers()) for member in self.members],
            "constant": self.settings.constant,
            "depth": self.settings.depth,
        }

    def _build(self, corpus: Corpus, folder: Path) -> None:
        """The members' indexes are all there is."""

    def _open(self) -> None:
        """The members open themselves."""

    def _rank(self, questions: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        depth = max(k, self.settings.depth)
        found = [member.rank(questions, depth)[0].tolist() for member in self.members]
        rows = np.full((len(questions), k), -1, dtype=np.int64)
        scores = np.zeros((len(questions), k), dtype=np.float32)
        for i, lists in enumerate(zip(*found, strict=True)):
            fused = fuse(lists, self.settings.constant)[:k]
            rows[i, : len(fused)] = [row for row, _ in fused]
            scores[i, : len(fused)] = [score for _, score in fused]
        return rows, scores


def fuse(lists: Sequence[Sequence[int]], constant: int) -> list[tuple[int, float]]:
    """(row, score) of all rows in any list, best first; negative rows are left out."""
    scores: dict[int, float] = {}
    for ranked in lists:
        for rank, row in enumerate((row for row in ranked if row >= 0), start=1):
            scores[row] = scores.get(row, 0.0) + 1 / (constant + rank)
    return sorted(scores.items(), key=lambda item: -item[1])
