"""ColBERT without its environment: what is told of a bad checkpoint, and of too few passages."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from dro_rl.errors import UserError
from dro_rl.records import Document, Example
from dro_rl.retrieval import make_retriever, open_retriever
from dro_rl.retrieval.colbert_worker import Worker
from dro_rl.sections.retrieval import Colbert, ColbertRetrieval
from tests.environments import complete

pytestmark = pytest.mark.unit


def settings(environment: str, model: str) -> Colbert:
    return Colbert(kind="colbert", model=model, environment=environment)


def test_what_is_no_checkpoint_is_named(tmp_path):
    (tmp_path / "model").mkdir()
    retriever = make_retriever(settings(complete(tmp_path), str(tmp_path / "model")), tmp_path)
    with pytest.raises(UserError, match="is no ColBERT checkpoint: it has no readable artifact"):
        retriever.makers()


def test_a_checkpoint_that_was_moved_is_told_where_it_is(tmp_path):
    """Without it ColBERT takes bert-base-uncased instead, and says nothing."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "artifact.metadata").write_text(json.dumps({"model_name": "/gone", "dim": 8}))
    retriever = make_retriever(settings(complete(tmp_path), str(model)), tmp_path / "cache")
    folder = Path(tmp_path / "cache" / retriever.makers()["model"])
    metadata = json.loads((folder / "artifact.metadata").read_text())
    assert metadata == {"model_name": str(folder), "checkpoint": str(folder), "dim": 8}
    before = json.loads((model / "artifact.metadata").read_text())
    assert before["model_name"] == "/gone"  # the user's own file stays as it is


def test_a_checkpoint_is_read_after_its_first_place_is_gone(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "artifact.metadata").write_text("{}")
    make_retriever(settings(complete(tmp_path), str(model)), tmp_path / "cache").makers()
    moved = tmp_path / "moved"
    shutil.move(model, moved)
    retriever = make_retriever(settings(complete(tmp_path), str(moved)), tmp_path / "cache")
    folder = Path(tmp_path / "cache" / retriever.makers()["model"])
    assert (folder / "config.json").read_text() == "{}"


def test_a_lock_that_a_killed_process_left_is_removed(tmp_path, monkeypatch):
    """Who compiles ColBERT's functions next would wait for it without end."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    locks = []
    for name, age in (("left", 3600), ("held", 5)):
        (tmp_path / name).mkdir()
        locks.append(tmp_path / name / "lock")
        locks[-1].touch()
        os.utime(locks[-1], (time.time() - age,) * 2)
    Worker("model", 9)
    assert [lock.exists() for lock in locks] == [False, True]


def test_too_few_passages_are_told(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "artifact.metadata").write_text("{}")
    section = ColbertRetrieval(
        kind="colbert",
        model=str(model),
        environment=complete(tmp_path),
        cache_dir=str(tmp_path / "cache"),
    )
    few = [Example("c", "", (), (Document("A", "a"),))]
    with (
        pytest.raises(UserError, match="1 passages are too few .* 100 are the least"),
        open_retriever(section, few),
    ):
        pass
