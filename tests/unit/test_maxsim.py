"""Exact late interaction equals its definition, however it is cut into blocks."""

from __future__ import annotations

import numpy as np
import pytest

from dro_rl.retrieval import maxsim

pytestmark = pytest.mark.unit


def ragged(random: np.random.Generator, lengths: list[int], kind: type) -> list[np.ndarray]:
    # Few different values, so that many scores are equal and their order matters.
    return [random.integers(-2, 3, (n, 6)).astype(kind) for n in lengths]


@pytest.mark.parametrize(("tokens", "questions"), [(1, 1), (13, 2), (64, 3), (10_000, 32)])
def test_search_in_blocks_equals_the_sum_of_largest_similarities(monkeypatch, tokens, questions):
    monkeypatch.setattr(maxsim, "_TOKENS", tokens)
    monkeypatch.setattr(maxsim, "_QUESTIONS", questions)
    random = np.random.default_rng(0)
    asked = ragged(random, [4, 1, 7, 3, 3, 2, 5], np.float32)
    passages = ragged(random, random.integers(1, 20, 90).tolist(), np.float16)
    wanted = np.array(
        [[(q @ p.astype(np.float32).T).max(axis=1).sum() for p in passages] for q in asked]
    )
    order = np.argsort(-wanted, axis=1, kind="stable")
    for k in (1, 10, 90):
        rows, scores = maxsim.most_similar(
            np.concatenate(asked),
            np.cumsum([len(q) for q in asked]),
            np.concatenate(passages),
            np.cumsum([len(p) for p in passages]),
            k,
        )
        assert np.array_equal(rows, order[:, :k])
        assert np.array_equal(scores, np.take_along_axis(wanted, order[:, :k], axis=1))
