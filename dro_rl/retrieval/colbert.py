"""ColBERT (arXiv 2004.12832, 2112.01488) by RAGatouille, in an environment of its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dro_rl.errors import UserError
from dro_rl.retrieval import colbert_worker
from dro_rl.retrieval.corpus import Corpus
from dro_rl.retrieval.environments import Elsewhere
from dro_rl.retrieval.folders import damaged, digest, made_folder
from dro_rl.retrieval.model_files import local_model, model_identity
from dro_rl.retrieval.retriever import Retriever, Say
from dro_rl.sections.retrieval import Colbert

# Part of an index's name. Raise it when a change in colbert_worker.py gives another index.
_FORMAT = 1
_LIBRARIES = ("ragatouille", "colbert-ai")
_FEWEST = 100  # passages; k-means wants more tokens than centroids
_METADATA = "artifact.metadata"


class ColbertRetriever(Retriever):
    """One vector a token; a passage's score is the sum over the question's tokens of the largest
    similarity to one of the passage's. Fewer passages than asked for may be found."""

    kind = "colbert"

    def __init__(self, settings: Colbert, cache: Path, say: Say = lambda text: None) -> None:
        super().__init__(cache, say)
        self.settings = settings
        self.worker = Elsewhere(
            self.kind,
            settings.environment,
            _LIBRARIES,
            colbert_worker,
            lambda: (str(self.checkpoint), settings.max_length),
        )

    def makers(self) -> Mapping[str, Any]:
        versions = {name: self.worker.versions[name] for name in _LIBRARIES}
        settings = {"model": self.checkpoint.name, "max_length": self.settings.max_length}
        return {"format": _FORMAT, **settings, **versions}

    def search_makers(self) -> Mapping[str, Any]:
        return {"depth": colbert_worker.DEPTH}

    def close(self) -> None:
        super().close()
        self.worker.close()

    @cached_property
    def checkpoint(self) -> Path:
        """A copy of the model, with metadata that say where it lies.

        ColBERT goes by the paths in a checkpoint's `artifact.metadata`, and where they are not
        there takes bert-base-uncased without a word, or asks the hub for it. An index keeps the
        path too, so the copy has to last when the model itself is moved or changed.

        Raises:
            UserError: the model is not a ColBERT checkpoint.
        """
        model = local_model(self.settings.model)
        try:
            metadata = json.loads((model / _METADATA).read_text())
        except (OSError, ValueError) as error:
            raise UserError(
                f"retrieval.model: {self.settings.model} is no ColBERT checkpoint: it has no "
                f"readable {_METADATA}; scripts/minilm_colbert.py makes one to try"
            ) from error
        makers = {"model": model_identity(model), "place": str(self.cache), "form": "copy"}
        place = str(self.cache / f"checkpoint-{digest(makers)}")

        def copy(folder: Path) -> None:
            # Contents alone: what is read-only there has to be written here.
            shutil.copytree(model, folder, dirs_exist_ok=True, copy_function=shutil.copyfile)
            moved = metadata | {"model_name": place, "checkpoint": place}
            (folder / _METADATA).write_text(json.dumps(moved, indent=1))

        return made_folder(self.cache, "checkpoint", makers, copy)

    def _build(self, corpus: Corpus, folder: Path) -> None:
        if len(corpus) < _FEWEST:
            raise UserError(
                f"retrieval.kind: colbert: {len(corpus)} passages are too few to learn the "
                f"centroids of an index from, {_FEWEST} are the least: take retrieval.kind: dense"
            )
        self.worker.call("index", str(corpus.passages), str(folder))

    def _open(self) -> None:
        from ray.exceptions import RayTaskError

        try:
            self.worker.call("open", str(self.folder))
        except RayTaskError as error:
            raise ValueError(f"RAGatouille cannot open it: {error.cause}") from error

    def _rank(self, questions: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        found = self.worker.call("search", list(questions), k)
        rows = np.full((len(questions), k), -1, dtype=np.int64)
        scores = np.zeros((len(questions), k), dtype=np.float32)
        for i, hits in enumerate(found):
            rows[i, : len(hits)] = [row for row, _ in hits]
            scores[i, : len(hits)] = [score for _, score in hits]
        if rows.size and rows.max() >= len(self.corpus):
            raise damaged(self.folder, f"it names passage {rows.max()} of {len(self.corpus)}")
        return rows, scores
