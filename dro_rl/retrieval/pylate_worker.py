"""PyLate's encoder, as it runs in an environment of its own.

It travels there by value: it imports nothing of this project, and only what that environment has.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

from typing import Any


class Worker:
    """Makes of texts one vector a token."""

    def __init__(self, model: str, max_length: int, batch_size: int) -> None:
        self.folder, self.max_length, self.batch_size = model, max_length, batch_size
        self.model: Any = None

    def load(self) -> None:
        """Read the model; a second call does nothing."""
        if self.model is None:
            from pylate.models import ColBERT

            self.model = ColBERT(
                self.folder, document_length=self.max_length, local_files_only=True
            )

    def encode(self, texts: list[str], is_query: bool) -> tuple[Any, list[int]]:
        """The vectors of all texts below each other, [tokens, components], float16, of length 1;
        and how many are each text's."""
        import numpy as np

        encoded = self.model.encode(
            texts, is_query=is_query, batch_size=self.batch_size, show_progress_bar=False
        )
        lengths = [len(vectors) for vectors in encoded]
        return np.concatenate(encoded).astype(np.float16), lengths
