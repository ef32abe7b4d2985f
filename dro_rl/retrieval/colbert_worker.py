"""ColBERT by RAGatouille, as it runs in an environment of its own.

It travels there by value: it imports nothing of this project, and only what that environment has.
A passage's id is its row in the corpus.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

_STALE = 600  # seconds; what ColBERT compiles takes one minute
DEPTH = 1024
"""Passages that are asked for at least. As many are scored by all their tokens as are asked for,
and at least 256: the rest is dropped by the centroids alone, and with it some of the best."""


class Worker:
    """Indexes a corpus, or searches an index."""

    def __init__(self, model: str, max_length: int) -> None:
        self.model, self.max_length = model, max_length
        _remove_stale_locks()

    def index(self, passages: str, folder: str) -> None:
        """Make an index of an Arrow file of titles and texts in an empty folder."""
        from ragatouille import RAGPretrainedModel

        texts = _texts(passages)
        model = RAGPretrainedModel.from_pretrained(self.model, index_root=folder, verbose=0)
        model.index(
            collection=texts,
            document_ids=[str(row) for row in range(len(texts))],
            index_name="index",
            max_document_length=self.max_length,
            split_documents=False,
            use_faiss=True,  # its own k-means compares every token with every centroid at once
        )

    def open(self, folder: str) -> None:
        """Load an index; one that was just made has to be opened too, or its search fails."""
        from ragatouille import RAGPretrainedModel

        self.searcher = RAGPretrainedModel.from_index(f"{folder}/colbert/indexes/index")

    def search(self, questions: list[str], k: int) -> list[list[tuple[int, float]]]:
        """(row, score) of up to k passages of each question, best first."""
        # One by one: RAGatouille pads a batch by its longest question with [MASK]s, which count,
        # so that a question's passages would depend on what else is asked.
        depth = max(k, DEPTH)
        found = [self.searcher.search(question, k=depth)[:k] for question in questions]
        return [[(int(hit["document_id"]), float(hit["score"])) for hit in hits] for hits in found]


def _remove_stale_locks() -> None:
    """What is killed while PyTorch compiles leaves a lock, for which the next waits without end."""
    from torch.utils.cpp_extension import get_default_build_root

    root = os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root()
    for lock in Path(root).rglob("lock"):
        with suppress(OSError):  # its owner may have removed it meanwhile
            if time.time() - lock.stat().st_mtime > _STALE:
                lock.unlink()


def _texts(passages: str) -> list[str]:
    import pyarrow as pa

    texts = []
    reader = pa.ipc.open_file(pa.memory_map(passages))
    for number in range(reader.num_record_batches):
        columns = reader.get_batch(number).to_pydict()
        pairs = zip(columns["title"], columns["text"], strict=True)
        texts += [f"{title} {text}".strip() for title, text in pairs]
    return texts
