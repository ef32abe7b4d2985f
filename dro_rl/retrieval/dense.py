"""Dense retrieval (Karpukhin et al., 2020): one vector a text by a sentence-transformers model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dro_rl.errors import UserError
from dro_rl.retrieval.corpus import Corpus
from dro_rl.retrieval.model_files import local_model, model_identity
from dro_rl.retrieval.retriever import Retriever, Say, best
from dro_rl.sections.retrieval import Dense

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

# Part of an index's name. Raise it when a change here gives other vectors, cells or files.
_FORMAT = 1
_VECTORS, _CELLS = "vectors.npy", "cells.faiss"
_BLOCK = 65_536  # vectors compared at once: 100 MB as float32 of 384 components


class DenseRetriever(Retriever):
    """Cosine similarity of a question's vector and those of the passages.

    Vectors are float16 in a memory-mapped file, 2 bytes a component; searching reads it once for
    some hundred questions. `index: faiss` makes of it a file of cells of 1 byte a component (IVF
    with scalar quantisation), memory-mapped too, of which `probes` are read.
    """

    kind = "dense"

    def __init__(self, settings: Dense, cache: Path, say: Say = lambda text: None) -> None:
        super().__init__(cache, say)
        self.settings = settings
        if self._uses_faiss() and find_spec("faiss") is None:
            raise UserError(
                "retrieval.index: faiss is not installed: pip install 'dro-rl[faiss]', or set "
                "index: exact"
            )
        self.model_folder = local_model(settings.model)
        self._model: SentenceTransformer | None = None

    def makers(self) -> Mapping[str, Any]:
        libraries = ["sentence-transformers", *(["faiss-cpu"] if self._uses_faiss() else [])]
        return {
            "format": _FORMAT,
            "model": model_identity(self.model_folder),
            "index": self.settings.index,
            "passage_prefix": self.settings.passage_prefix,
            **{name: version(name) for name in libraries},
        }

    def search_makers(self) -> Mapping[str, Any]:
        return {"query_prefix": self.settings.query_prefix, "probes": self.settings.probes}

    def close(self) -> None:
        super().close()
        self._model = None

    def encode_passages(self, texts: list[str]) -> np.ndarray:
        """[texts, components], float16, of length 1."""
        return self._encode("encode_document", texts, self.settings.passage_prefix)

    def encode_questions(self, texts: Sequence[str]) -> np.ndarray:
        """[texts, components], float16, of length 1."""
        return self._encode("encode_query", texts, self.settings.query_prefix)

    def _build(self, corpus: Corpus, folder: Path) -> None:
        if self._uses_faiss():
            exact = self.settings.model_copy(update={"index": "exact"})
            encoded = DenseRetriever(exact, self.cache, self.say).index(corpus)
            vectors = np.load(encoded / _VECTORS, mmap_mode="r", allow_pickle=False)
            _write_cells(vectors, folder / _CELLS)
        else:
            self._write_vectors(corpus, folder / _VECTORS)

    def _open(self) -> None:
        if self._uses_faiss():
            import faiss

            try:
                self.cells: Any = faiss.read_index(str(self.folder / _CELLS), faiss.IO_FLAG_MMAP)
            except RuntimeError as error:  # what faiss raises for any bad file
                raise ValueError(f"{_CELLS} is not an index of faiss") from error
            self.cells.nprobe = self.settings.probes
            found = self.cells.ntotal
        else:
            self.vectors = np.load(self.folder / _VECTORS, mmap_mode="r", allow_pickle=False)
            found = len(self.vectors)
        if found != len(self.corpus):
            raise ValueError(f"it has vectors of {found} passages")

    def _rank(self, questions: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        queries = self.encode_questions(questions).astype(np.float32)
        if self._uses_faiss():
            scores, rows = self.cells.search(queries, k)
            return rows.astype(np.int64), scores
        return nearest(queries, self.vectors, k)

    def _write_vectors(self, corpus: Corpus, path: Path) -> None:
        vectors, done = None, 0
        for block in corpus.blocks():
            encoded = self.encode_passages([f"{d.title} {d.text}".strip() for d in block])
            if vectors is None:
                shape = (len(corpus), encoded.shape[1])
                vectors = np.lib.format.open_memmap(path, "w+", np.float16, shape)
            vectors[done : done + len(block)] = encoded
            done += len(block)
            if done < len(corpus):
                self.say(f"{self.kind}: {done:,} of {len(corpus):,} passages encoded")
        assert vectors is not None  # a corpus is not empty
        vectors.flush()

    def _uses_faiss(self) -> bool:
        return self.settings.index == "faiss"

    def _encode(self, method: str, texts: Sequence[str], prefix: str) -> np.ndarray:
        vectors = getattr(self._loaded(), method)(
            [prefix + text for text in texts],
            batch_size=self.settings.batch_size,
            normalize_embeddings=True,
            show_progress_bar=False,
        )
        return np.asarray(vectors, dtype=np.float16)

    def _loaded(self) -> SentenceTransformer:
        if self._model is None:
            from sentence_transformers import SentenceTransformer  # seconds to import

            try:
                self._model = SentenceTransformer(
                    str(self.model_folder),
                    model_kwargs={"use_safetensors": True},
                    trust_remote_code=False,
                )
            except (OSError, ValueError) as error:
                raise UserError(
                    f"retrieval.model: {self.settings.model} cannot be loaded as a model of "
                    f"sentence-transformers: {error}"
                ) from error
        return self._model


def nearest(queries: np.ndarray, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows of the k largest inner products and these, best first; equal ones in order.

    Args:
        queries: [questions, components], float32.
        vectors: [passages, components] of any float type; read in blocks, so it may be a file.
    """
    found = [(np.empty(0, np.int64), np.empty(0, np.float32)) for _ in queries]
    for start in range(0, len(vectors), _BLOCK):
        block = queries @ np.asarray(vectors[start : start + _BLOCK], dtype=np.float32).T
        for i, scores in enumerate(block):
            near = best(scores, min(k, len(scores)))
            rows = np.concatenate([found[i][0], start + near])
            scores = np.concatenate([found[i][1], scores[near]])
            kept = best(scores, min(k, len(scores)))
            found[i] = rows[kept], scores[kept]
    rows, scores = zip(*found, strict=True)
    return np.stack(rows), np.stack(scores)


def _write_cells(vectors: np.ndarray, path: Path) -> None:
    """An inverted file of faiss: about 4 sqrt(n) cells, learned from up to 64 vectors each."""
    import faiss

    count, size = vectors.shape
    cells = max(1, min(int(4 * count**0.5), count // 39))  # 39: fewer points a cell, and it warns
    index = faiss.index_factory(size, f"IVF{cells},SQ8", faiss.METRIC_INNER_PRODUCT)
    sample = np.random.default_rng(0).permutation(count)[: 64 * cells]
    index.train(np.asarray(vectors[np.sort(sample)], dtype=np.float32))
    for start in range(0, count, _BLOCK):
        index.add(np.asarray(vectors[start : start + _BLOCK], dtype=np.float32))
    faiss.write_index(index, str(path))
