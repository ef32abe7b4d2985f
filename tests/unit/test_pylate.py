"""PyLate's index and search, with vectors that stand for words; and what is told of a bad model."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest

from dro_rl.errors import UserError
from dro_rl.records import Document, Example
from dro_rl.retrieval import make_retriever, open_retriever, pylate
from dro_rl.retrieval.pylate import PylateRetriever
from dro_rl.sections.retrieval import Pylate, PylateRetrieval
from tests.environments import complete

pytestmark = pytest.mark.unit

PASSAGES = ("cats purr", "dogs bark at cats", "fish swim", "birds fly over fish", "stones")


def encode(self, texts, is_query):
    """A random vector a word, the same for the same word."""
    words = [text.split() for text in texts]
    seeds = [zlib.crc32(word.encode()) for own in words for word in own]
    vectors = np.stack([np.random.default_rng(seed).normal(size=64) for seed in seeds])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float16), [len(own) for own in words]


@pytest.fixture
def section(tmp_path, monkeypatch) -> PylateRetrieval:
    monkeypatch.setattr(PylateRetriever, "encode", encode)
    monkeypatch.setattr(pylate, "_AT_ONCE", 2)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"architectures": ["HF_ColBERT"]}')
    return PylateRetrieval(
        kind="pylate",
        model=str(tmp_path / "model"),
        environment=complete(tmp_path),
        cache_dir=str(tmp_path / "cache"),
    )


def search(section: PylateRetrieval, *questions: str, k: int = 2):
    passages = tuple(Document("", text) for text in PASSAGES)
    with open_retriever(section, [Example("c", "", (), passages)]) as retriever:
        return [[d.text for d, _ in found] for found in retriever.search(questions, k)]


def test_passages_with_the_questions_words_come_first(section):
    found = search(section, "dogs fly", "cats", "fish birds over")
    assert [set(one) for one in found[:2]] == [{PASSAGES[1], PASSAGES[3]}, set(PASSAGES[:2])]
    assert found[2][0] == PASSAGES[3]
    assert [len(one) for one in search(section, "stones", k=9)] == [5]


def test_an_index_is_made_once_and_anew_for_other_settings(section, tmp_path, monkeypatch):
    first = search(section, "cats")
    monkeypatch.setattr(PylateRetriever, "_build", None)
    assert search(section, "cats") == first
    for changes in ({"max_length": 9}, {"environment": complete(tmp_path, pylate="1.7.0")}):
        with pytest.raises(TypeError):
            search(section.model_copy(update=changes), "cats")
    monkeypatch.setattr(pylate, "_FORMAT", pylate._FORMAT + 1)
    with pytest.raises(TypeError):
        search(section.model_copy(update={"environment": complete(tmp_path)}), "cats")


def test_a_damaged_index_is_named(section, tmp_path):
    search(section, "cats")
    (folder,) = (tmp_path / "cache").glob("pylate-*")
    ends = folder / "ends.npy"
    ends.write_bytes(b"x" * ends.stat().st_size)
    with pytest.raises(UserError, match=f"{folder} is damaged.*remove the folder"):
        search(section, "cats")


@pytest.mark.parametrize(
    ("file", "content", "is_one"),
    [
        ("config.json", '{"architectures": ["BertModel"]}', False),
        ("modules.json", '[{"type": "sentence_transformers.models.Pooling"}]', False),
        ("modules.json", "no JSON", False),
        ("config.json", '{"architectures": ["HF_ColBERT"]}', True),
        ("modules.json", '[{"type": "pylate.models.Dense.Dense"}]', True),
    ],
)
def test_a_model_without_projection_is_refused(tmp_path: Path, file, content, is_one):
    """PyLate would give it a random one, and search at random."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / file).write_text(content)
    environment = complete(tmp_path)
    settings = Pylate(kind="pylate", model=str(tmp_path / "model"), environment=environment)
    if is_one:
        make_retriever(settings, tmp_path)
    else:
        with pytest.raises(UserError, match="is no checkpoint of ColBERT or PyLate"):
            make_retriever(settings, tmp_path)
