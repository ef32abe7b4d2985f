"""BM25 (Robertson and Zaragoza, 2009) by bm25s: Lucene's variant, English stems and stop words."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import bm25s
import numpy as np
import Stemmer

from dro_rl.errors import UserError
from dro_rl.records import Document, Example
from dro_rl.retrieval.corpus import pool, read_corpus
from dro_rl.retrieval_sections import Bm25Retrieval


@dataclass(frozen=True, slots=True)
class Bm25Index:
    """A searchable corpus. Make it with `build`, or with `open_index`, which caches it on disk."""

    documents: tuple[Document, ...]
    scorer: bm25s.BM25

    @classmethod
    def build(cls, documents: Sequence[Document], settings: Bm25Retrieval) -> Bm25Index:
        """Index the titles and texts of a corpus.

        Raises:
            UserError: there is no document, or no word in any of them.
        """
        if not documents:
            raise UserError("the corpus is empty: there are no documents to search")
        words = _words([f"{document.title} {document.text}" for document in documents])
        if not any(words):
            raise UserError("the corpus has no words to search: all documents are blank")
        scorer = bm25s.BM25(k1=settings.k1, b=settings.b)
        scorer.index(words, show_progress=False)
        return cls(tuple(documents), scorer)

    def search(self, question: str, k: int) -> list[tuple[Document, float]]:
        """The k best documents (all, if there are fewer) with their scores, best first.

        Equal scores keep the order of the corpus. Documents that share no word with the question
        score 0 and fill up the list.
        """
        words = _words([question])[0]
        scores = self.scorer.get_scores(words) if words else np.zeros(len(self.documents))
        return [(self.documents[i], float(scores[i])) for i in _best(scores, k)]


def open_index(corpus_examples: Sequence[Example], settings: Bm25Retrieval) -> Bm25Index:
    """The index of `corpus_path`, or else of the pooled documents of `corpus_examples`.

    It is kept in a folder of `cache_dir` that is named by the hash of what makes the index, so a
    second call reads it and any change makes another. Processes may call this at once.

    Raises:
        UserError: the corpus is empty or unreadable, or `cache_dir` cannot be written.
    """
    if settings.corpus_path is not None:
        documents = read_corpus(settings.corpus_path)
    else:
        documents = pool(corpus_examples)
    folder = Path(settings.cache_dir).expanduser() / _fingerprint(documents, settings)
    if not folder.is_dir():
        try:
            index = Bm25Index.build(documents, settings)
        except UserError as error:
            source = settings.corpus_path or "pooled from the data's questions"
            raise UserError(
                f"{error} ({source}): set retrieval.corpus_path to a file of passages"
            ) from error
        _publish(index.scorer, folder)
    return Bm25Index(tuple(documents), bm25s.BM25.load(folder, show_progress=False))


def _words(texts: list[str]) -> list[list[str]]:
    stemmer = Stemmer.Stemmer("english")
    words = bm25s.tokenize(
        texts, stopwords="en", stemmer=stemmer, return_ids=False, show_progress=False
    )
    assert isinstance(words, list)  # what return_ids=False means
    return words


def _best(scores: np.ndarray, k: int) -> list[int]:
    """The positions of the k highest scores, equal ones in order; sorts no more than it must."""
    k = min(k, len(scores))
    threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
    positions = np.flatnonzero(scores >= threshold)
    return positions[np.argsort(-scores[positions], kind="stable")][:k].tolist()


def _fingerprint(documents: Sequence[Document], settings: Bm25Retrieval) -> str:
    makers = {
        "bm25s": version("bm25s"),
        "PyStemmer": version("PyStemmer"),
        "words": "english",
        "k1": settings.k1,
        "b": settings.b,
    }
    digest = hashlib.sha256(json.dumps(makers).encode())
    for document in documents:
        digest.update(json.dumps([document.title, document.text]).encode())
    return f"bm25-{digest.hexdigest()[:32]}"


def _publish(scorer: bm25s.BM25, folder: Path) -> None:
    """Write the index beside `folder`, then rename it, so that a folder is always whole."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=".building-", dir=folder.parent))
    except OSError as error:
        raise UserError(
            f"cannot write to {folder.parent}: {error.strerror}: set retrieval.cache_dir to a "
            "folder that can be written"
        ) from error
    try:
        scorer.save(building, show_progress=False)
        os.replace(building, folder)
    except OSError:
        if not folder.is_dir():  # else another process was first with the same index
            raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
