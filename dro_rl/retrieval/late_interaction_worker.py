"""ColBERT as it runs in an environment of its own, by RAGatouille or PyLate.

It travels there by value: it imports nothing of this project, and only what that environment has.
A passage's id is its row in the corpus.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

from typing import Any


class Worker:
    """Indexes a corpus, or searches an index; `kind` is "colbert" or "pylate"."""

    def __init__(self, kind: str, model: str, max_length: int) -> None:
        self.backend = {"colbert": _Ragatouille, "pylate": _Pylate}[kind](model, max_length)

    def index(self, passages: str, folder: str) -> None:
        """Make an index of an Arrow file of titles and texts in an empty folder."""
        import pyarrow as pa

        texts = []
        reader = pa.ipc.open_file(pa.memory_map(passages))
        for number in range(reader.num_record_batches):
            columns = reader.get_batch(number).to_pydict()
            pairs = zip(columns["title"], columns["text"], strict=True)
            texts += [f"{title} {text}".strip() for title, text in pairs]
        self.backend.index(texts, folder)

    def open(self, folder: str) -> None:
        self.backend.open(folder)

    def search(self, questions: list[str], k: int) -> list[list[tuple[int, float]]]:
        """(row, score) of up to k passages of each question, best first."""
        return self.backend.search(questions, k)


class _Ragatouille:
    def __init__(self, model: str, max_length: int) -> None:
        self.model, self.max_length = model, max_length

    def index(self, texts: list[str], folder: str) -> None:
        from ragatouille import RAGPretrainedModel

        model = RAGPretrainedModel.from_pretrained(self.model, index_root=folder, verbose=0)
        model.index(
            collection=texts,
            document_ids=[str(row) for row in range(len(texts))],
            index_name="index",
            max_document_length=self.max_length,
            split_documents=False,
            use_faiss=True,  # its own k-means is for machines without faiss
        )

    def open(self, folder: str) -> None:
        # An index that was just made has to be opened anew, or its first search fails.
        from ragatouille import RAGPretrainedModel

        self.searcher = RAGPretrainedModel.from_index(f"{folder}/colbert/indexes/index")

    def search(self, questions: list[str], k: int) -> list[list[tuple[int, float]]]:
        found = self.searcher.search(questions, k=k)
        if len(questions) == 1:  # of which it makes a single list
            found = [found]
        return [[(int(hit["document_id"]), float(hit["score"])) for hit in hits] for hits in found]


class _Pylate:
    def __init__(self, model: str, max_length: int) -> None:
        from pylate import models

        self.model = models.ColBERT(model, document_length=max_length)

    def index(self, texts: list[str], folder: str) -> None:
        index = self._index(folder, override=True)
        vectors = self._encode(texts, is_query=False)
        index.add_documents([str(row) for row in range(len(texts))], vectors)

    def open(self, folder: str) -> None:
        from pylate import retrieve

        self.retriever = retrieve.ColBERT(index=self._index(folder, override=False))

    def search(self, questions: list[str], k: int) -> list[list[tuple[int, float]]]:
        found = self.retriever.retrieve(self._encode(questions, is_query=True), k=k)
        return [[(int(hit["id"]), float(hit["score"])) for hit in hits] for hits in found]

    def _encode(self, texts: list[str], is_query: bool) -> Any:
        return self.model.encode(texts, is_query=is_query, show_progress_bar=False)

    def _index(self, folder: str, override: bool) -> Any:
        from pylate import indexes

        return indexes.PLAID(index_folder=folder, index_name="index", override=override)
