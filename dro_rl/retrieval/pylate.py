"""Late interaction with the checkpoints of PyLate, which encodes in an environment of its own.

PyLate's own index, fast-plaid, is built for one version of PyTorch each, and for none that is as
new as ours. So the vectors are kept here, all of them, and each is compared: exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dro_rl.errors import UserError
from dro_rl.retrieval import pylate_worker
from dro_rl.retrieval.corpus import Corpus
from dro_rl.retrieval.environments import Elsewhere
from dro_rl.retrieval.maxsim import most_similar
from dro_rl.retrieval.model_files import local_model, model_identity
from dro_rl.retrieval.retriever import Retriever, Say
from dro_rl.sections.retrieval import Pylate

# Part of an index's name. Raise it when a change here or in pylate_worker.py gives other vectors or
# other files.
_FORMAT = 1
_LIBRARIES = ("pylate", "sentence-transformers")
_VECTORS, _ENDS = "vectors.f16", "ends.npy"
_AT_ONCE = 256  # passages that are sent there and back at once: 25 MB of 384 components


class PylateRetriever(Retriever):
    """One vector a token; a passage's score is the sum over the question's tokens of the largest
    similarity to one of the passage's. Vectors are float16 in a memory-mapped file."""

    kind = "pylate"

    def __init__(self, settings: Pylate, cache: Path, say: Say = lambda text: None) -> None:
        super().__init__(cache, say)
        self.settings = settings
        self.worker = Elsewhere(
            self.kind,
            settings.environment,
            _LIBRARIES,
            pylate_worker,
            lambda: (str(self.model), settings.max_length, settings.batch_size),
        )
        self.model = local_model(settings.model)
        _check_checkpoint(self.model, settings.model)

    def makers(self) -> Mapping[str, Any]:
        return {
            "format": _FORMAT,
            "model": model_identity(self.model),
            "max_length": self.settings.max_length,
            **{name: self.worker.versions[name] for name in _LIBRARIES},
        }

    def close(self) -> None:
        super().close()
        self.worker.close()

    def encode(self, texts: Sequence[str], is_query: bool) -> tuple[np.ndarray, list[int]]:
        """Vectors of all texts below each other, [tokens, components], float16, of length 1; and
        how many are each text's.

        Raises:
            UserError: the model cannot be loaded.
        """
        from ray.exceptions import RayTaskError

        try:
            self.worker.call("load")
        except RayTaskError as error:
            raise UserError(
                f"retrieval.model: {self.settings.model} cannot be loaded by PyLate: {error.cause}"
            ) from error
        return self.worker.call("encode", list(texts), is_query)

    def _build(self, corpus: Corpus, folder: Path) -> None:
        lengths: list[int] = []
        with (folder / _VECTORS).open("wb") as file:
            for texts in _portions(corpus):
                vectors, own = self.encode(texts, is_query=False)
                vectors.tofile(file)
                lengths += own
                if len(lengths) % 4096 == 0:
                    self.say(f"{self.kind}: {len(lengths):,} of {len(corpus):,} passages encoded")
        np.save(folder / _ENDS, np.cumsum(lengths, dtype=np.int64))

    def _open(self) -> None:
        self.ends = np.load(self.folder / _ENDS, allow_pickle=False)
        if len(self.ends) != len(self.corpus):
            raise ValueError(f"it has vectors of {len(self.ends)} passages")
        flat = np.memmap(self.folder / _VECTORS, np.float16, mode="r")
        self.vectors = flat.reshape(self.ends[-1], -1)

    def _rank(self, questions: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        tokens, lengths = self.encode(questions, is_query=True)
        ends = np.cumsum(lengths, dtype=np.int64)
        return most_similar(tokens.astype(np.float32), ends, self.vectors, self.ends, k)


def _portions(corpus: Corpus) -> Iterator[list[str]]:
    for block in corpus.blocks():
        texts = [f"{d.title} {d.text}".strip() for d in block]
        for start in range(0, len(texts), _AT_ONCE):
            yield texts[start : start + _AT_ONCE]


def _check_checkpoint(folder: Path, name: str) -> None:
    """Refuse a model without ColBERT's projection, for PyLate would give it one at random.

    Raises:
        UserError: names the model.
    """
    marks = {"config.json": '"HF_ColBERT"', "modules.json": '.Dense"'}
    if not any(mark in _text(folder / file) for file, mark in marks.items()):
        raise UserError(
            f"retrieval.model: {name} is no checkpoint of ColBERT or PyLate: it has no projection "
            "of its tokens' vectors; scripts/minilm_colbert.py makes one to try"
        )


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""
