"""Candidates and indexes on disk: made once, never read half written or damaged."""

from __future__ import annotations

import shutil
import threading
from dataclasses import replace
from pathlib import Path

import bm25s
import pytest

from dro_rl.errors import UserError
from dro_rl.retrieval import add_candidates, open_retriever
from dro_rl.retrieval import bm25 as bm25_module
from dro_rl.retrieval import retriever as retriever_module
from dro_rl.retrieval.corpus import open_corpus
from tests.retrievals import BIRDS, CATS, DOGS, FISH, QUESTIONS, bm25, example, search

pytestmark = pytest.mark.unit


def folders(tmp_path: Path, kind: str) -> list[Path]:
    return list((tmp_path / "cache").glob(f"{kind}-*"))


def test_candidates_are_read_from_disk_the_second_time(tmp_path, monkeypatch):
    def found(questions=QUESTIONS, **settings):
        return add_candidates(questions, QUESTIONS, bm25(tmp_path, **settings), seed=0, required=2)

    first = found()
    monkeypatch.setattr(bm25s.BM25, "load", None)  # to search would need it
    assert found() == first
    for other in ({"candidates": 2}, {"k1": 0.9}, {"questions": QUESTIONS[:1]}):
        with pytest.raises(TypeError):
            found(**other)
    assert len(folders(tmp_path, "corpus")) == 1
    assert len(folders(tmp_path, "bm25")) == 2  # one a k1


def test_an_index_is_made_once(tmp_path, monkeypatch):
    first = search(tmp_path, "rivers", 2, CATS, FISH)
    monkeypatch.setattr(bm25s.BM25, "save", None)
    assert search(tmp_path, "rivers", 2, CATS, FISH) == first
    with pytest.raises(TypeError):  # another corpus
        search(tmp_path, "rivers", 2, CATS, FISH, DOGS)
    with pytest.raises(TypeError):  # other settings
        search(tmp_path, "rivers", 2, CATS, FISH, k1=0.9)


def test_a_change_of_our_own_code_makes_an_index_and_its_candidates_anew(tmp_path, monkeypatch):
    settings = bm25(tmp_path)
    add_candidates(QUESTIONS, QUESTIONS, settings, seed=0, required=2)
    monkeypatch.setattr(retriever_module, "_FORMAT", retriever_module._FORMAT + 1)
    add_candidates(QUESTIONS, QUESTIONS, settings, seed=0, required=2)
    assert (len(folders(tmp_path, "bm25")), len(folders(tmp_path, "candidates"))) == (1, 2)
    monkeypatch.setattr(bm25_module, "_FORMAT", bm25_module._FORMAT + 1)
    add_candidates(QUESTIONS, QUESTIONS, settings, seed=0, required=2)
    assert (len(folders(tmp_path, "bm25")), len(folders(tmp_path, "candidates"))) == (2, 3)


def test_questions_are_ranked_some_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(retriever_module, "AT_ONCE", 2)
    asked = ["barking dogs", "cats", "swims", "fly", "postmen"]
    with open_retriever(bm25(tmp_path), QUESTIONS) as retriever:
        sizes, rank = [], retriever._rank
        monkeypatch.setattr(
            retriever, "_rank", lambda some, k: (sizes.append(len(some)), rank(some, k))[1]
        )
        found = retriever.search(asked, 2)
        assert sizes == [2, 2, 1]
        assert found == [retriever.search([question], 2)[0] for question in asked]


def test_another_corpus_is_searched_after_it_was_indexed(tmp_path):
    settings = bm25(tmp_path)
    with open_retriever(settings, QUESTIONS[:1]) as retriever:
        retriever.search(["Birds fly"], 1)
        retriever.index(open_corpus(settings, [example("q", "?", BIRDS)]))
        assert retriever.search(["Birds fly"], 4) == [[(BIRDS, pytest.approx(0.4, abs=0.4))]]


def test_an_interrupted_build_leaves_nothing_that_is_read(tmp_path, monkeypatch):
    save = bm25s.BM25.save

    def interrupted(self, folder, **options):
        save(self, folder, **options)
        (Path(folder) / "params.index.json").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(bm25s.BM25, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, "bark", 1, CATS, DOGS)
    assert folders(tmp_path, "bm25") == folders(tmp_path, ".building") == []
    monkeypatch.undo()
    assert search(tmp_path, "bark", 1, CATS, DOGS)[0][0] == DOGS


def test_builders_at_once_agree(tmp_path, monkeypatch):
    save, together = bm25s.BM25.save, threading.Barrier(4)

    def save_together(self, folder, **options):
        save(self, folder, **options)
        together.wait(timeout=10)

    monkeypatch.setattr(bm25s.BM25, "save", save_together)
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(search(tmp_path, "rivers", 2, CATS, FISH)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(f == found[0] for f in found)
    assert len(folders(tmp_path, "bm25")) == len(folders(tmp_path, "corpus")) == 1


def test_a_cache_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match=r"set retrieval.cache_dir to a folder"):
        search(tmp_path, "rivers", 1, CATS)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def spoil(path: Path) -> None:
    path.write_bytes(b"x" * path.stat().st_size)


@pytest.mark.parametrize(
    ("kind", "file", "damage", "told"),
    [
        ("bm25", "data.csc.index.npy", cut, "its file data.csc.index.npy has"),
        ("bm25", "data.csc.index.npy", Path.unlink, "its file data.csc.index.npy is missing"),
        ("bm25", "data.csc.index.npy", spoil, ""),
        ("bm25", "vocab.index.json", spoil, ""),
        ("bm25", "made.json", Path.unlink, "its made.json cannot be read"),
        ("bm25", "made.json", cut, "its made.json cannot be read"),
        ("corpus", "passages.arrow", cut, "its file passages.arrow has"),
        ("corpus", "passages.arrow", spoil, "passages.arrow: "),
        ("candidates", "rows.npy", spoil, ""),
    ],
)
def test_what_is_damaged_is_named_and_not_used(tmp_path, kind, file, damage, told):
    def found(name: str):
        questions = [replace(q, id=name) for q in QUESTIONS]
        return add_candidates(questions, QUESTIONS, bm25(tmp_path), seed=0, required=2)

    found("first")
    (folder,) = folders(tmp_path, kind)
    damage(folder / file)
    if kind == "bm25":
        shutil.rmtree(folders(tmp_path, "candidates")[0])
    with pytest.raises(UserError, match="remove the folder, and it is made again") as error:
        found("second")
    assert f"{folder} is damaged: {told}" in str(error.value)
    shutil.rmtree(folder)
    found("third")


def test_an_index_of_another_corpus_is_refused(tmp_path):
    search(tmp_path, "rivers", 1, CATS, FISH)
    (first,) = folders(tmp_path, "bm25")
    search(tmp_path, "rivers", 1, DOGS, BIRDS)
    (second,) = set(folders(tmp_path, "bm25")) - {first}
    shutil.rmtree(second)
    shutil.copytree(first, second)
    with pytest.raises(UserError, match="it was made of another corpus"):
        search(tmp_path, "rivers", 1, DOGS, BIRDS)
