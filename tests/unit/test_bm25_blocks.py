"""An index that is made block by block is the one that bm25s makes of all words at once."""

from __future__ import annotations

import random

import bm25s
import numpy as np
import pytest

from dro_rl.retrieval import bm25_blocks
from dro_rl.retrieval.bm25_blocks import build_in_blocks

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(("block", "entries"), [(1, 1), (7, 10), (1000, 4_000_000)])
@pytest.mark.parametrize(("k1", "b"), [(1.5, 0.75), (0.9, 0.4), (2.0, 0.0)])
def test_scores_equal_those_of_bm25s(tmp_path, monkeypatch, block, entries, k1, b):
    monkeypatch.setattr(bm25_blocks, "_ENTRIES", entries)
    dice = random.Random(0)
    words = [[f"w{min(dice.expovariate(0.2), 60):.0f}" for _ in range(n % 23)] for n in range(150)]
    blocks = [words[i : i + block] for i in range(0, len(words), block)]
    build_in_blocks(blocks, bm25s.BM25(k1=k1, b=b), tmp_path).save(tmp_path / "saved")
    ours = bm25s.BM25.load(tmp_path / "saved", mmap=True)
    theirs = bm25s.BM25(k1=k1, b=b)
    theirs.index(words, show_progress=False)
    assert ours.scores["num_docs"] == 150
    for query in ([f"w{i}"] for i in range(61)):
        np.testing.assert_allclose(ours.get_scores(query), theirs.get_scores(query), rtol=1e-6)
    many = ["w1", "w5", "w5", "w30", "unknown"]
    np.testing.assert_allclose(ours.get_scores(many), theirs.get_scores(many), rtol=1e-6)
