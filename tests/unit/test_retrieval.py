"""Candidates of a question: which, in what order, and from a cache that is never half written."""

from __future__ import annotations

import json
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import bm25s
import pytest

from dro_rl.errors import UserError
from dro_rl.records import Document, Example
from dro_rl.retrieval import add_candidates, open_retriever
from dro_rl.retrieval import bm25 as bm25_module
from dro_rl.retrieval import retriever as retriever_module
from dro_rl.retrieval.corpus import open_corpus
from dro_rl.sections.retrieval import Bm25Retrieval, GivenRetrieval
from tests.real_data import REAL, needs_real_data

pytestmark = pytest.mark.unit


CATS = Document("Cats", "Cats sleep and purr.")
DOGS = Document("Dogs", "Dogs bark at postmen.")
FISH = Document("Fish", "Fish swim in rivers.")
BIRDS = Document("Birds", "Birds fly over rivers.")


def gold(document: Document) -> Document:
    return replace(document, is_gold=True)


def example(name: str, question: str, *documents: Document) -> Example:
    return Example(name, question, ("yes",), documents)


QUESTIONS = [
    example("q1", "Which animal is barking?", gold(DOGS), CATS, FISH),
    example("q2", "Which swims in the river?", BIRDS, gold(FISH), DOGS),
]


def given(**settings) -> GivenRetrieval:
    return GivenRetrieval.model_validate({"kind": "given", **settings})


def bm25(tmp_path: Path, **settings) -> Bm25Retrieval:
    cache = str(tmp_path / "cache")
    return Bm25Retrieval.model_validate({"kind": "bm25", "cache_dir": cache, **settings})


# --- given --------------------------------------------------------------------------------------


def test_given_takes_the_first_documents_and_scores_them_by_rank():
    found = add_candidates(
        QUESTIONS, QUESTIONS, given(candidates=2, shuffle=False), seed=0, required=2
    )
    assert found[0].candidates == (gold(DOGS), CATS)
    assert found[0].scores[0] > found[0].scores[1]
    assert found[0].question == QUESTIONS[0].question


def test_fewer_candidates_than_a_selection_holds_is_an_error_that_names_the_example():
    with pytest.raises(
        UserError, match=r"'q1' has 3 candidate documents.*lower selector.documents"
    ):
        add_candidates(QUESTIONS, QUESTIONS, given(), seed=0, required=4)
    bare = [example("bare", "Which?")]
    with pytest.raises(UserError, match="'bare' has 0 candidate documents"):
        add_candidates(bare, bare, given(), seed=0, required=1)


def test_shuffling_depends_on_the_seed_and_the_example_alone():
    documents = [Document(str(i), f"text {i}") for i in range(20)]
    many = [example(f"q{i}", "Which?", *documents) for i in range(50)]

    def shuffled(questions, seed):
        return add_candidates(questions, questions, given(), seed=seed, required=5)

    first = shuffled(many, 1)
    assert first == shuffled(many, 1)
    assert first[7:9] == shuffled(many[7:9], 1)
    assert first != shuffled(many, 2)
    assert len({e.candidates for e in first}) == 50
    places = [e.candidates.index(documents[0]) for e in first]
    assert len(set(places)) > 10  # position tells nothing
    for e in first:  # scores travel with their documents
        assert e.scores == tuple(-float(d.title) for d in e.candidates)


# --- bm25 ---------------------------------------------------------------------------------------


def test_pooled_searches_the_documents_of_all_questions(tmp_path):
    settings = bm25(tmp_path, candidates=4, shuffle=False)
    first, second = add_candidates(QUESTIONS, QUESTIONS, settings, seed=0, required=4)
    assert first.candidates[0] == gold(DOGS)  # "barking" finds "bark"
    assert second.candidates[:2] == (gold(FISH), BIRDS)
    # a paragraph is gold for the question that says so, and no other
    assert [d.title for d in first.candidates if d.is_gold] == ["Dogs"]
    assert [d.title for d in second.candidates if d.is_gold] == ["Fish"]
    # one copy of each, best first
    assert {d.title for d in first.candidates} == {"Dogs", "Cats", "Fish", "Birds"}
    assert list(second.scores) == sorted(second.scores, reverse=True)


def test_pooled_searches_only_the_corpus_it_is_given(tmp_path):
    settings = bm25(tmp_path, candidates=3)
    (found,) = add_candidates(QUESTIONS[1:], QUESTIONS[:1], settings, seed=0, required=3)
    assert {d.title for d in found.candidates} == {"Dogs", "Cats", "Fish"}


def test_own_ranks_the_questions_own_documents(tmp_path):
    settings = bm25(tmp_path, corpus="own", candidates=2, shuffle=False)
    first, second = add_candidates(QUESTIONS, QUESTIONS, settings, seed=0, required=2)
    assert first.candidates[0] == gold(DOGS)
    assert second.candidates == (gold(FISH), BIRDS)
    with pytest.raises(UserError, match="'q1' has 3 candidate documents"):
        add_candidates(QUESTIONS, QUESTIONS, bm25(tmp_path, corpus="own"), seed=0, required=4)


def test_own_names_the_question_whose_documents_are_blank(tmp_path):
    blank = [example("q9", "Which?", Document("", " "), Document("", "?"))]
    with pytest.raises(UserError, match="'q9': the corpus has no words"):
        add_candidates(blank, blank, bm25(tmp_path, corpus="own"), seed=0, required=1)


def test_corpus_path_is_searched_instead(tmp_path):
    path = tmp_path / "corpus.jsonl"
    rows = [
        {"title": "Dogs", "text": DOGS.text, "id": 3},
        {"text": "Foxes bark too."},
        {"text": "x"},
    ]
    path.write_text("\n\n".join(map(json.dumps, rows)))
    settings = bm25(tmp_path, corpus_path=str(path), candidates=2, shuffle=False)
    (found,) = add_candidates(QUESTIONS[:1], QUESTIONS, settings, seed=0, required=2)
    assert {d.title for d in found.candidates} == {"Dogs", ""}
    assert [d.title for d in found.candidates if d.is_gold] == ["Dogs"]


def test_an_empty_pool_is_an_error(tmp_path):
    bare = [example("bare", "Which?")]
    with pytest.raises(UserError, match=r"the corpus is empty.*retrieval.corpus_path"):
        add_candidates(bare, bare, bm25(tmp_path), seed=0, required=1)


def search(tmp_path, question: str, k: int, *documents: Document, **settings):
    """The ranking of one question over these documents."""
    corpus = [example("corpus", "", *documents)]
    with open_retriever(bm25(tmp_path, **settings), corpus) as retriever:
        return retriever.search([question], k)[0]


def test_search_fills_up_with_documents_that_share_no_word(tmp_path):
    animals = CATS, DOGS, FISH, BIRDS
    found = search(tmp_path, "Do dogs bark?", 3, *animals)
    assert found[0][0] == DOGS
    assert found[0][1] > 0
    assert found[1:] == [(CATS, 0.0), (FISH, 0.0)]  # ties keep the corpus's order
    assert len(search(tmp_path, "rivers", 100, *animals)) == 4
    for nothing in ("", "who is it?", "xylophone"):
        assert [score for _, score in search(tmp_path, nothing, 2, *animals)] == [0.0, 0.0]


def test_settings_of_bm25_are_used(tmp_path):
    documents = [Document("", "river"), Document("", "river " + "stone " * 30)]
    flat, steep = (search(tmp_path, "river", 2, *documents, b=b) for b in (0.0, 1.0))
    spread = [abs(found[0][1] - found[1][1]) for found in (flat, steep)]
    assert spread[0] == pytest.approx(0)
    assert spread[1] > 0.01


# --- the cache ----------------------------------------------------------------------------------


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


# --- real questions -----------------------------------------------------------------------------


def read_real(path: Path, count: int) -> list[Example]:
    examples = []
    for row in json.loads(path.read_text())[:count]:
        titles = {title for title, _ in row["supporting_facts"]}
        documents = [Document(t, "".join(s), t in titles) for t, s in row["context"]]
        examples.append(example(row["_id"], row["question"], *documents))
    return examples


@needs_real_data
def test_gold_paragraphs_of_hotpotqa_are_found_in_the_pool(tmp_path):
    examples = read_real(REAL / "official" / "hotpotqa_official_100.json", 100)
    found = add_candidates(examples, examples, bm25(tmp_path), seed=0, required=20)
    wanted = [sum(d.is_gold for d in e.candidates) for e in examples]
    recalls = [sum(d.is_gold for d in e.candidates) / n for e, n in zip(found, wanted, strict=True)]
    assert sum(recalls) / len(recalls) >= 0.85


@needs_real_data
def test_ranking_each_questions_own_documents_is_fast(tmp_path):
    examples = read_real(REAL / "official" / "hotpotqa_official_100.json", 100)
    started = time.process_time()
    add_candidates(examples, examples, bm25(tmp_path, corpus="own"), seed=0, required=4)
    assert time.process_time() - started < 2  # a thousand questions take 2 s on an idle core
