"""Files that are damaged, records that cannot be used, and questions on both sides: one message
each, with the place."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from dro_rl.data import Split, load_examples, overlaps
from dro_rl.errors import UserError
from dro_rl.records import Example
from dro_rl.sections.data import (
    DroData,
    JsonlData,
    MusiqueData,
    NaturalQuestionsData,
    WikimultihopData,
)

pytestmark = pytest.mark.unit


def question(name: str, **changes: Any) -> dict[str, Any]:
    row = {
        "id": name,
        "question": f"Who wrote {name}?",
        "answers": ["Ann"],
        "documents": [{"title": name, "text": "By Ann.", "is_gold": True}],
    }
    return row | changes


def lines(*rows: dict[str, Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def load(path: Path, content: bytes, **settings: Any) -> Split:
    path.write_bytes(content)
    chosen = {"evaluation_questions": 1, **settings}
    data = JsonlData(kind="jsonl", path=str(path), **chosen)
    return load_examples(data, seed=0)


def load_two(tmp_path: Path, train: bytes, evaluation: bytes, **settings: Any) -> Split:
    (tmp_path / "dev.jsonl").write_bytes(evaluation)
    other = str(tmp_path / "dev.jsonl")
    return load(tmp_path / "train.jsonl", train, evaluation_path=other, **settings)


# --- damaged files ------------------------------------------------------------------------------

MANY = [question(f"q{i} {i * 7919 % 1000}") for i in range(3000)]


@pytest.mark.parametrize("content", [lines(*MANY), json.dumps(MANY).encode()])
def test_a_truncated_gzip_file_is_named_with_how_far_it_goes(tmp_path, content):
    packed = gzip.compress(content)
    with pytest.raises(UserError, match=r"a.gz: its gzip data is damaged after record \d{3,}"):
        load(tmp_path / "a.gz", packed[: len(packed) // 2])


def test_a_gzip_file_of_something_else_is_named(tmp_path):
    with pytest.raises(UserError, match=r"a.gz: its gzip data is damaged after record 0"):
        load(tmp_path / "a.gz", gzip.compress(b"x")[:2] + b"no gzip header at all")


def test_a_truncated_list_is_named_with_how_far_it_goes(tmp_path):
    rows = json.dumps([question("q1"), question("q2")]).encode()
    with pytest.raises(UserError, match=r"a.json, question 2: is not JSON .*cut short"):
        load(tmp_path / "a.json", rows[:-20])


def test_a_line_in_another_encoding_is_named(tmp_path):
    latin = json.dumps(question("Möbius"), ensure_ascii=False).encode("latin-1") + b"\n"
    with pytest.raises(UserError, match=r"line 2: is not UTF-8 \(byte 0xf6 at position 10\)"):
        load(tmp_path / "a.jsonl", lines(question("Möbius 1")) + latin + lines(question("q3")))


def test_a_list_in_another_encoding_is_named(tmp_path):
    rows = [question("q1"), question("Möbius")]
    content = json.dumps(rows, ensure_ascii=False).encode("latin-1")
    with pytest.raises(UserError, match=r"a.json, question 2: is not UTF-8"):
        load(tmp_path / "a.json", content)


def test_a_line_that_is_too_deep_is_named(tmp_path):
    with pytest.raises(UserError, match=r"a.jsonl, line 2: Invalid JSON"):
        load(tmp_path / "a.jsonl", lines(question("q1")) + b'{"id": ' + b"[" * 20_000)


@pytest.mark.parametrize("brackets", [b"[" * 2_000, b'{"a": ' * 2_000])
def test_a_list_that_is_too_deep_is_named_before_it_takes_memory(tmp_path, brackets):
    """No more than 2,000 levels here: without the limit memory grows with their square."""
    content = b"[" + json.dumps(question("q1")).encode() + b', {"id": ' + brackets
    with pytest.raises(UserError, match=r"a.json, question 2: is nested more than 100 levels deep"):
        load(tmp_path / "a.json", content)


@pytest.mark.parametrize("kind", ["jsonl", "musique"])
@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("~no-such-user/a.jsonl", "no user of that name"),
        ("a" * 300 + ".jsonl", "cannot read .*too long"),
    ],
)
def test_a_path_that_no_file_can_have_is_named(kind, path, told):
    section = {"jsonl": JsonlData, "musique": MusiqueData}[kind]
    with pytest.raises(UserError, match=told):
        load_examples(section(kind=kind, path=path, evaluation_questions=1), seed=0)


# --- unusable records ---------------------------------------------------------------------------


def test_an_id_that_occurs_twice_is_named_with_both_places(tmp_path):
    content = lines(question("q1"), question("q2"), question("q1", question="Another?"))
    with pytest.raises(UserError, match=r"line 3: id 'q1' was used before \(.*line 1\)"):
        load(tmp_path / "a.jsonl", content)


def test_a_document_without_title_and_text_is_named(tmp_path):
    documents = [{"text": "x"}, {"title": " ", "text": "\n"}]
    with pytest.raises(UserError, match=r"line 2: document 2 has neither title nor text"):
        load(tmp_path / "a.jsonl", lines(question("q1"), question("q2", documents=documents)))


def test_a_title_alone_is_a_document(tmp_path):
    rows = [question(n, documents=[{"title": "x", "text": ""}]) for n in ("q1", "q2")]
    assert load(tmp_path / "a.jsonl", lines(*rows)).train[0].candidates[0].title == "x"


@pytest.mark.parametrize("answers", [["a the"], ["...", "The"]])
def test_an_answer_that_no_metric_can_see_is_named(tmp_path, answers):
    content = lines(question("q1"), question("q2", answers=answers), question("q3"))
    with pytest.raises(
        UserError, match=r"line 2: the answer of question 'q2'.*unscorable_answers: keep"
    ):
        load(tmp_path / "a.jsonl", content)
    split = load(tmp_path / "a.jsonl", content, unscorable_answers="keep")
    assert split.train[1].answers == tuple(answers)


def test_no_answer_at_all_is_refused_whatever_is_kept(tmp_path):
    row = {"question": "who", "answer": [], "retrieval": ["a"]}
    path = tmp_path / "a.json"
    path.write_text(json.dumps([row, row]))
    data = DroData(kind="dro", path=str(path), evaluation_questions=1, unscorable_answers="keep")
    with pytest.raises(UserError, match=r"a.json, question 1: question 'a.json-1' has no answer"):
        load_examples(data, seed=0)


@pytest.mark.parametrize(
    "changes",
    [
        {"id": "q\ud800"},
        {"question": "Who \ud800?"},
        {"answers": ["Ann", "\ud800"]},
        {"documents": [{"text": "By \ud800."}]},
    ],
)
def test_half_a_surrogate_pair_is_named(tmp_path, changes):
    rows = [json.dumps(question("q1")), json.dumps(question("q2", **changes)), ""]
    with pytest.raises(UserError, match=r"line 2: half of a surrogate pair"):
        load(tmp_path / "a.jsonl", "\n".join(rows).encode())


def test_publishers_own_sets_keep_the_answers_that_they_have(tmp_path):
    path = tmp_path / "NQ-open.dev.jsonl"
    path.write_bytes(
        b'{"question": "who", "answer": ["!!!"]}\n{"question": "when", "answer": ["1"]}'
    )
    data = NaturalQuestionsData(kind="natural_questions", path=str(path), evaluation_questions=1)
    assert load_examples(data, seed=0).train[0].answers == ("!!!",)


def test_an_alias_that_no_metric_can_see_is_left_out(tmp_path):
    rows = [question(n, answers=["The", "Ann", "!"]) for n in ("q1", "q2")]
    assert load(tmp_path / "a.jsonl", lines(*rows)).train[0].answers == ("Ann",)


def test_a_file_of_unanswerable_questions_holds_none(tmp_path):
    path = tmp_path / "a.jsonl"
    row = {"id": "x", "question": "?", "answer": "x", "answerable": False, "paragraphs": []}
    path.write_text(json.dumps(row))
    data = MusiqueData(kind="musique", path=str(path), evaluation_questions=1)
    with pytest.raises(UserError, match="holds no questions"):
        load_examples(data, seed=0)


def test_a_broken_alias_file_is_named(tmp_path):
    aliases = tmp_path / "id_aliases.json"
    aliases.write_text('{"Q_id": "Q1"}\n')
    data = WikimultihopData(kind="wikimultihop", path="x.json", aliases_path=str(aliases))
    with pytest.raises(UserError, match=r"id_aliases.json, line 1: aliases: Field required"):
        load_examples(data, seed=0)


# --- leaks --------------------------------------------------------------------------------------


def test_a_question_on_both_sides_is_named_with_both_ids(tmp_path):
    train = lines(question("t1"), question("t2", question="Who  wrote É?"), question("t3"))
    evaluation = lines(question("e1"), question("e2", question="who wrote É"))
    with pytest.raises(
        UserError,
        match=r"question 'who wrote É' is both in train \(id 't2'\) and in evaluation "
        r"\(id 'e2'\): .*data.allow_overlap: true",
    ):
        load_two(tmp_path, train, evaluation, evaluation_questions=None)


def test_an_id_on_both_sides_is_a_leak_whatever_the_question(tmp_path):
    train, evaluation = lines(question("q1")), lines(question("q1", question="Changed?"))
    with pytest.raises(UserError, match=r"'Changed\?' is both in train \(id 'q1'\)"):
        load_two(tmp_path, train, evaluation, evaluation_questions=None)


def test_ids_that_are_made_up_are_no_leak(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        row = {"question": f"who wrote {folder}", "answer": ["Ann"]}
        (tmp_path / folder / "nq.jsonl").write_text(json.dumps(row))
    data = NaturalQuestionsData(
        kind="natural_questions",
        path=str(tmp_path / "a" / "nq.jsonl"),
        evaluation_path=str(tmp_path / "b" / "nq.jsonl"),
    )
    split = load_examples(data, seed=0)
    assert split.train[0].id == split.evaluation[0].id
    same = data.model_copy(update={"evaluation_path": data.path})
    with pytest.raises(UserError, match="'who wrote a' is both in train"):
        load_examples(same, seed=0)


def test_questions_that_only_look_alike_are_no_leak(tmp_path):
    train = lines(question("t1", question="What is C?"), question("t2", question="Is C fast?"))
    evaluation = lines(question("e1", question="What is C++?"))
    split = load_two(tmp_path, train, evaluation, evaluation_questions=None)
    assert len(split.train) == 2


def test_overlap_can_be_allowed_and_is_counted(tmp_path):
    rows = lines(question("q1"), question("q2"))
    with pytest.raises(UserError, match=r"\(2 such questions\)"):
        load_two(tmp_path, rows, rows, evaluation_questions=None)
    split = load_two(tmp_path, rows, rows, evaluation_questions=None, allow_overlap=True)
    assert [one.id for one, _ in overlaps(split)] == ["q1", "q2"]


def test_overlaps_count_a_question_once(tmp_path):
    same = Example("q1", "Who?", ("Ann",))
    assert overlaps(Split([same], [same])) == [(same, same)]
