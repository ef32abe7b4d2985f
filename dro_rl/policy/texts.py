"""What a sentence encoder reads of a question and its documents, and how long it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dro_rl.policy.picks import State
from dro_rl.records import Document

KEPT = 2**18
"""Texts of which something is remembered: their lengths, or their vectors (400 MB of 384
components)."""

Text = str | tuple[str, str]  # or, of a cross-encoder, question and document


def question_text(state: State) -> str:
    """The question, and after it the texts of what has been picked, in order."""
    picked = (document_text(state.example.candidates[i]) for i in state.picked)
    return " ".join((state.example.question, *picked))


def document_text(document: Document) -> str:
    """As dense retrieval encodes it."""
    return f"{document.title} {document.text}".strip()


class Lengths:
    """Tokens of texts, special ones included, before any is cut.

    Args:
        tokenizer: the encoder's.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._known: dict[Text, int] = {}

    def of(self, texts: Sequence[Text]) -> list[int]:
        """One number a text."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            columns = [new] if isinstance(new[0], str) else zip(*new, strict=True)
            encoded = self.tokenizer(*map(list, columns), truncation=False, verbose=False)
            self._known.update(zip(new, map(len, encoded["input_ids"]), strict=True))
        found = [self._known[text] for text in texts]
        drop_oldest(self._known)
        return found


def drop_oldest(known: dict) -> None:
    """Down to KEPT entries."""
    while len(known) > KEPT:
        del known[next(iter(known))]
