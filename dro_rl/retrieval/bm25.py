"""BM25 (Robertson and Zaragoza, 2009) by bm25s: Lucene's variant, English stems and stop words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
import Stemmer

from dro_rl.errors import UserError
from dro_rl.records import Document
from dro_rl.retrieval.bm25_blocks import build_in_blocks
from dro_rl.retrieval.corpus import Corpus
from dro_rl.retrieval.folders import scratch
from dro_rl.retrieval.retriever import Ranking, Retriever, Say, best
from dro_rl.sections.retrieval import Bm25

# Part of an index's name. Raise it when a change here or in bm25_blocks.py gives other words, other
# scores or other files.
_FORMAT = 1


class Bm25Retriever(Retriever):
    """BM25 over titles and texts. Equal scores keep the order of the corpus; passages that share
    no word with the question score 0 and fill up the list."""

    kind = "bm25"

    def __init__(self, settings: Bm25, cache: Path, say: Say = lambda text: None) -> None:
        super().__init__(cache, say)
        self.settings = settings

    def makers(self) -> Mapping[str, Any]:
        versions = {name: version(name) for name in ("bm25s", "PyStemmer")}
        settings = {"words": "english", "k1": self.settings.k1, "b": self.settings.b}
        return {"format": _FORMAT, **versions, **settings}

    def _build(self, corpus: Corpus, folder: Path) -> None:
        words = (_words(list(map(_text, block))) for block in corpus.blocks())
        empty = bm25s.BM25(k1=self.settings.k1, b=self.settings.b)
        with scratch(self.cache) as place:
            build_in_blocks(words, empty, place).save(folder, show_progress=False)

    def _open(self) -> None:
        self.scorer = bm25s.BM25.load(
            self.folder, mmap=True, allow_pickle=False, show_progress=False
        )
        if self.scorer.scores["num_docs"] != len(self.corpus):
            raise ValueError(f"it has {self.scorer.scores['num_docs']} passages")

    def _rank(self, questions: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        rows = np.empty((len(questions), k), dtype=np.int64)
        scores = np.zeros((len(questions), k), dtype=np.float32)
        for i, words in enumerate(_words(list(questions))):
            everything = _scores(self.scorer, words, len(self.corpus))
            rows[i] = best(everything, k)
            scores[i] = everything[rows[i]]
        return rows, scores


def rank_own(question: str, documents: Sequence[Document], settings: Bm25, k: int) -> Ranking:
    """The k best of a question's own documents, all if there are fewer.

    An index for them alone: what the word frequencies of these few say ranks them better than those
    of a whole corpus (HotpotQA, 1,677 questions of 10 documents: gold recall@3 0.755 against
    0.666), and at 1.4 ms it needs no cache.

    Raises:
        UserError: there is no word in any of them.
    """
    if not documents:
        return []
    scorer = _scorer(_words(list(map(_text, documents))), settings)
    scores = _scores(scorer, _words([question])[0], len(documents))
    return [(documents[i], float(scores[i])) for i in best(scores, min(k, len(documents)))]


def _text(document: Document) -> str:
    return f"{document.title} {document.text}"


def _words(texts: list[str]) -> list[list[str]]:
    stemmer = Stemmer.Stemmer("english")
    words = bm25s.tokenize(
        texts, stopwords="en", stemmer=stemmer, return_ids=False, show_progress=False
    )
    assert isinstance(words, list)  # what return_ids=False means
    return words


def _scorer(words: list[list[str]], settings: Bm25) -> bm25s.BM25:
    if not any(words):
        raise UserError("the corpus has no words to search: all documents are blank")
    scorer = bm25s.BM25(k1=settings.k1, b=settings.b)
    scorer.index(words, show_progress=False)
    return scorer


def _scores(scorer: bm25s.BM25, words: list[str], documents: int) -> np.ndarray:
    return scorer.get_scores(words) if words else np.zeros(documents, dtype=np.float32)
