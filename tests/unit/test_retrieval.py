"""Candidates of a question: which, and in what order."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from dro_rl.errors import UserError
from dro_rl.records import Document, Example
from dro_rl.retrieval import add_candidates
from tests.real_data import REAL, needs_real_data
from tests.retrievals import BIRDS, CATS, DOGS, FISH, QUESTIONS, bm25, example, given, gold, search

pytestmark = pytest.mark.unit


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
