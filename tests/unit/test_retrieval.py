"""Candidates of a question: which, in what order, and from a cache that is never half written."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import bm25s
import pytest
from real_data import REAL, needs_real_data

from dro_rl.errors import UserError
from dro_rl.records import Document, Example
from dro_rl.retrieval import Bm25Index, add_candidates, open_index
from dro_rl.retrieval_sections import Bm25Retrieval, GivenRetrieval

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


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"text": "a"}\n{"text": ', "line 2: Invalid JSON"),
        ('{"text": "a"}\n{"title": "b"}', "line 2: text: Field required"),
        ('{"text": 3}', "line 1: text: Input should be a valid string"),
        ("", "the corpus is empty"),
        ('{"text": ""}', "the corpus has no words"),
        (None, "cannot read"),
    ],
)
def test_a_bad_corpus_file_is_named(tmp_path, content, told):
    path = tmp_path / "corpus.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=told) as error:
        open_index([], bm25(tmp_path, corpus_path=str(path)))
    assert str(path) in str(error.value)


def test_an_empty_pool_is_an_error(tmp_path):
    bare = [example("bare", "Which?")]
    with pytest.raises(UserError, match=r"the corpus is empty.*retrieval.corpus_path"):
        add_candidates(bare, bare, bm25(tmp_path), seed=0, required=1)
    with pytest.raises(UserError, match="the corpus is empty"):
        Bm25Index.build([], bm25(tmp_path))


def test_search_fills_up_with_documents_that_share_no_word(tmp_path):
    index = Bm25Index.build([CATS, DOGS, FISH, BIRDS], bm25(tmp_path))
    found = index.search("Do dogs bark?", 3)
    assert found[0][0] == DOGS
    assert found[0][1] > 0
    assert found[1:] == [(CATS, 0.0), (FISH, 0.0)]  # ties keep the corpus's order
    assert len(index.search("rivers", 100)) == 4
    for nothing in ("", "who is it?", "xylophone"):
        assert [score for _, score in index.search(nothing, 2)] == [0.0, 0.0]


def test_settings_of_bm25_are_used(tmp_path):
    documents = [Document("", "river"), Document("", "river " + "stone " * 30)]
    flat, steep = (Bm25Index.build(documents, bm25(tmp_path, b=b)) for b in (0.0, 1.0))
    spread = [abs(s[0][1] - s[1][1]) for s in (i.search("river", 2) for i in (flat, steep))]
    assert spread[0] == pytest.approx(0)
    assert spread[1] > 0.01


# --- the cache ----------------------------------------------------------------------------------


def test_a_second_call_reads_the_index_from_disk(tmp_path, monkeypatch):
    first = open_index(QUESTIONS, bm25(tmp_path)).search("rivers", 4)

    def build(*_, **__):
        raise AssertionError("built again")

    monkeypatch.setattr(bm25s.BM25, "index", build)
    assert open_index(QUESTIONS, bm25(tmp_path)).search("rivers", 4) == first
    with pytest.raises(AssertionError):  # another corpus
        open_index(QUESTIONS[:1], bm25(tmp_path))
    with pytest.raises(AssertionError):  # other settings
        open_index(QUESTIONS, bm25(tmp_path, k1=0.9))


def test_an_interrupted_build_leaves_nothing_that_is_read(tmp_path, monkeypatch):
    save = bm25s.BM25.save

    def interrupted(self, folder, **options):
        save(self, folder, **options)
        (Path(folder) / "params.index.json").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(bm25s.BM25, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        open_index(QUESTIONS, bm25(tmp_path))
    assert list((tmp_path / "cache").iterdir()) == []
    monkeypatch.undo()
    assert open_index(QUESTIONS, bm25(tmp_path)).search("bark", 1)[0][0] == DOGS


def test_builders_at_once_agree(tmp_path, monkeypatch):
    save, together = bm25s.BM25.save, threading.Barrier(4)

    def save_together(self, folder, **options):
        save(self, folder, **options)
        together.wait(timeout=10)

    monkeypatch.setattr(bm25s.BM25, "save", save_together)
    found = []

    def search():
        found.append(open_index(QUESTIONS, bm25(tmp_path)).search("rivers", 4))

    threads = [threading.Thread(target=search) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(f == found[0] for f in found)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_cache_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match=r"set retrieval.cache_dir to a folder"):
        open_index(QUESTIONS, bm25(tmp_path))


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
