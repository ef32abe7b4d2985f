"""What a recipe will do and need, worked out from the recipe alone: no torch, no model loaded."""

from __future__ import annotations

from dro_rl.estimate.gpus import given_or_found
from dro_rl.estimate.report import in_words, memory_in_words

__all__ = ["given_or_found", "in_words", "memory_in_words"]
