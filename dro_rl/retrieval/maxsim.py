"""Exact search by late interaction (ColBERT, arXiv 2004.12832, equation 3)."""

from __future__ import annotations

import numpy as np

from dro_rl.retrieval.retriever import best

_TOKENS = 16_384  # of passages, compared at once: 64 MB of similarities with 32 questions of 32
_QUESTIONS = 32  # for which all passages' vectors are read once


def most_similar(
    questions: np.ndarray, question_ends: np.ndarray, vectors: np.ndarray, ends: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The rows of the k passages with the largest sum over a question's tokens of the largest inner
    product with one of the passage's, and these sums, best first; equal ones in order.

    Args:
        questions: [tokens of all questions, components], float32.
        question_ends: where each question's tokens end.
        vectors: [tokens of all passages, components] of any float type; read in blocks, so it may
            be a file.
        ends: where each passage's tokens end; it has one at least.
    Returns:
        Rows (int64) and scores (float32), [questions, k].
    """
    rows = np.empty((len(question_ends), k), dtype=np.int64)
    scores = np.empty((len(question_ends), k), dtype=np.float32)
    begins = np.concatenate([[0], question_ends])
    for first in range(0, len(question_ends), _QUESTIONS):
        own = begins[first : first + _QUESTIONS + 1]
        everything = _scores(questions[own[0] : own[-1]], own[:-1] - own[0], vectors, ends)
        for i, one in enumerate(everything, start=first):
            rows[i] = best(one, k)
            scores[i] = one[rows[i]]
    return rows, scores


def _scores(
    tokens: np.ndarray, begins: np.ndarray, vectors: np.ndarray, ends: np.ndarray
) -> np.ndarray:
    """[questions, passages] of the questions whose tokens begin there."""
    scores = np.empty((len(begins), len(ends)), dtype=np.float32)
    first = 0
    while first < len(ends):
        start = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, start + _TOKENS, side="right")))
        block = np.asarray(vectors[start : ends[last - 1]], dtype=np.float32)
        places = np.concatenate([[0], ends[first : last - 1] - start])
        nearest = np.maximum.reduceat(block @ tokens.T, places, axis=0)
        scores[:, first:last] = np.add.reduceat(nearest, begins, axis=1).T
        first = last
    return scores
