"""JSON lines and the built-in world as Examples, and what bad files are told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dro_rl.data import load_examples
from dro_rl.errors import UserError
from dro_rl.records import Document
from dro_rl.sections.data import FactsData, JsonlData
from tests.real_data import REAL, needs_real_data

pytestmark = pytest.mark.unit


def jsonl_data(**settings) -> JsonlData:
    return JsonlData.model_validate({"kind": "jsonl", **settings})


def question(name: str, **changes) -> dict:
    row = {
        "id": name,
        "question": f"Who wrote {name}?",
        "answers": ["Ann", "Ann Lee"],
        "documents": [{"title": name, "text": "By Ann Lee.", "is_gold": True}, {"text": "Else."}],
    }
    return row | changes


def write_lines(path: Path, *rows: dict | str) -> str:
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    return str(path)


# --- JSON lines ---------------------------------------------------------------------------------


def test_jsonl_reads_questions_and_ignores_blank_lines_and_extra_keys(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", question("q1", source="web"), "", question("q2"))
    split = load_examples(jsonl_data(path=path, evaluation_questions=1), seed=0)
    (example,) = split.train
    assert (example.id, example.answers) == ("q1", ("Ann", "Ann Lee"))
    assert example.candidates == (
        Document("q1", "By Ann Lee.", is_gold=True),
        Document("", "Else.", is_gold=False),
    )
    assert [e.id for e in split.evaluation] == ["q2"]


def test_jsonl_takes_evaluation_from_another_file_and_limits_both(tmp_path):
    train = write_lines(tmp_path / "train.jsonl", *(question(f"t{i}") for i in range(5)))
    other = write_lines(tmp_path / "other.jsonl", *(question(f"e{i}") for i in range(5)))
    split = load_examples(
        jsonl_data(
            path=train,
            evaluation_path=other,
            train_questions=2,
            evaluation_questions=3,
        ),
        seed=0,
    )
    assert [e.id for e in split.train] == ["t0", "t1"]
    assert [e.id for e in split.evaluation] == ["e0", "e1", "e2"]


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ('{"id": "q2", ', "Invalid JSON"),
        ('["a list"]', "object"),
        (json.dumps({k: v for k, v in question("q2").items() if k != "answers"}), "answers: Field"),
        (json.dumps(question("q2", id=7)), "id: Input should be a valid string"),
        (json.dumps(question("q2", answers="Ann")), "answers: Input should be a valid list"),
        (json.dumps(question("q2", question="  ")), "question: must not be blank"),
        (json.dumps(question("q2", answers=[])), "answers: List should have at least 1 item"),
        (json.dumps(question("q2", answers=[""])), "answers.0: must not be blank"),
        (json.dumps(question("q2", documents=[{"title": "x"}])), "documents.0.text: Field"),
        (json.dumps(question("q2", documents=[{"text": "x", "is_gold": "no"}])), "is_gold"),
        (json.dumps(question("q1")), "id 'q1' was used before"),
    ],
)
def test_jsonl_names_file_and_line_of_a_bad_question(tmp_path, bad, told):
    path = write_lines(tmp_path / "a.jsonl", question("q1"), "", bad)
    with pytest.raises(UserError) as error:
        load_examples(jsonl_data(path=path, evaluation_questions=1), seed=0)
    assert str(error.value).startswith(f"{path}, line 3: ")
    assert told in str(error.value)


def test_jsonl_reads_a_byte_order_mark_and_refuses_other_encodings(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(question("q1")) + "\n" + json.dumps(question("q2")), "utf-8-sig")
    data = jsonl_data(path=str(path), evaluation_questions=1)
    assert load_examples(data, seed=0).train[0].id == "q1"
    path.write_bytes(json.dumps(question("Möbius"), ensure_ascii=False).encode("latin-1"))
    with pytest.raises(UserError, match="line 1: is not UTF-8 \\(byte 0xf6 at position 10"):
        load_examples(data, seed=0)


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_jsonl_refuses_an_empty_file(tmp_path, content):
    path = write_lines(tmp_path / "a.jsonl", content)
    with pytest.raises(UserError, match=r"a.jsonl holds no questions"):
        load_examples(jsonl_data(path=path, evaluation_questions=1), seed=0)


@pytest.mark.parametrize("name", ["missing.jsonl", "."])
def test_jsonl_refuses_what_is_no_file(tmp_path, name):
    path = str(tmp_path / name)
    with pytest.raises(UserError, match=f"cannot read {path}"):
        load_examples(jsonl_data(path=path, evaluation_questions=1), seed=0)


def test_jsonl_refuses_a_question_on_both_sides(tmp_path):
    same = question("q2", question="WHO  wrote q1?")
    path = write_lines(tmp_path / "a.jsonl", question("q1"), same)
    with pytest.raises(UserError, match=r"'WHO  wrote q1\?' is both in train \(id 'q1'\)"):
        load_examples(jsonl_data(path=path, evaluation_questions=1), seed=0)


def test_a_single_file_needs_to_know_what_to_evaluate_on(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", question("q1"), question("q2"))
    with pytest.raises(UserError, match=r"evaluation_path.*evaluation_questions"):
        load_examples(jsonl_data(path=path), seed=0)
    with pytest.raises(UserError, match=r"evaluation_questions \(2\) leaves nothing to train on"):
        load_examples(jsonl_data(path=path, evaluation_questions=2), seed=0)


@needs_real_data
def test_real_questions_are_read():
    split = load_examples(
        jsonl_data(
            path=str(REAL / "hotpotqa_train.jsonl"),
            evaluation_path=str(REAL / "hotpotqa_validation.jsonl"),
        ),
        seed=0,
    )
    assert (len(split.train), len(split.evaluation)) == (498, 1695)
    assert all(sum(d.is_gold for d in e.candidates) == 2 for e in split.train)


# --- the built-in world -------------------------------------------------------------------------


def test_facts_are_decided_by_the_seed():
    data = FactsData(
        kind="facts", train_questions=6, evaluation_questions=3, documents=6, rumours=0.5
    )
    split = load_examples(data, seed=1)
    assert (len(split.train), len(split.evaluation)) == (6, 3)
    assert all(len(e.candidates) == 6 for e in split.train + split.evaluation)
    assert load_examples(data, seed=1) == split
    assert load_examples(data, seed=2) != split
