"""The documents that come with the question, in the order they come in."""

from __future__ import annotations

from dro_rl.records import Document, Example


def take_given(example: Example, count: int) -> list[tuple[Document, float]]:
    """The first `count` documents; their score is minus their rank, all that is known of them."""
    return [(document, -float(rank)) for rank, document in enumerate(example.candidates[:count])]
