"""HotpotQA in the publishers' format and in the hub's layout, and what bad files are told."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import datasets.config
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dro_rl.data import load_examples
from dro_rl.errors import UserError
from dro_rl.records import Document
from dro_rl.sections.data import HotpotData
from tests.real_data import REAL, needs_real_data

pytestmark = pytest.mark.unit


def hotpot_data(**settings) -> HotpotData:
    return HotpotData.model_validate({"kind": "hotpotqa", **settings})


def hotpot(name: str, **changes) -> dict:
    row = {
        "_id": name,
        "question": f"Who wrote {name}?",
        "answer": "Ann",
        "type": "bridge",
        "level": "hard",
        "supporting_facts": [["Book", 0], ["Book", 1], ["Ann", 0]],
        "context": [
            ["Book", ["A book.", " It is long."]],
            ["Other", ["Nothing."]],
            ["Ann", ["A writer."]],
        ],
    }
    return row | changes


def write_json(path: Path, content) -> str:
    path.write_text(json.dumps(content))
    return str(path)


def test_hotpotqa_reads_the_publishers_format(tmp_path):
    path = write_json(tmp_path / "h.json", [hotpot("h1"), hotpot("h2"), hotpot("h3")])
    data = hotpot_data(path=path, evaluation_questions=1, train_questions=1)
    split = load_examples(data, seed=0)
    (example,) = split.train
    assert (example.id, example.question, example.answers) == ("h1", "Who wrote h1?", ("Ann",))
    assert example.candidates == (
        Document("Book", "A book. It is long.", is_gold=True),
        Document("Other", "Nothing.", is_gold=False),
        Document("Ann", "A writer.", is_gold=True),
    )
    assert [e.id for e in split.evaluation] == ["h3"]


def test_hotpotqa_takes_evaluation_from_another_file(tmp_path):
    path = write_json(tmp_path / "train.json", [hotpot("h1")])
    other = write_json(tmp_path / "dev.json", [hotpot("h2"), hotpot("h3")])
    split = load_examples(hotpot_data(path=path, evaluation_path=other), seed=0)
    assert [e.id for e in split.train] == ["h1"]
    assert [e.id for e in split.evaluation] == ["h2", "h3"]


def test_hotpotqa_refuses_the_same_file_for_both(tmp_path):
    path = write_json(tmp_path / "h.json", [hotpot("h1")])
    with pytest.raises(UserError, match="both in train"):
        load_examples(hotpot_data(path=path, evaluation_path=path), seed=0)


def without(key: str) -> dict:
    return {k: v for k, v in hotpot("h2").items() if k != key}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{not json", "line 1: Invalid JSON"),
        (json.dumps({"data": []}), "line 1: _id: Field required"),
        (json.dumps([hotpot("h1")])[:-9], "question 1: is not JSON"),
        (json.dumps([]), "holds no questions"),
        (json.dumps([hotpot("h1"), without("answer")]), "question 2: answer: Field required"),
        (json.dumps([hotpot("h1"), without("supporting_facts")]), "question 2: supporting_facts"),
        (json.dumps([hotpot("h1"), hotpot("h2", context=[["x"]])]), "question 2: context.0"),
        (
            json.dumps([hotpot("h1"), hotpot("h2", question=" ")]),
            "question 2: question: must not be blank",
        ),
        (json.dumps([hotpot("h1"), hotpot("h1")]), "question 2: id 'h1' was used before"),
        (json.dumps([hotpot("h1"), "text"]), "question 2: "),
    ],
)
def test_hotpotqa_names_file_and_place_of_a_bad_question(tmp_path, content, told):
    path = tmp_path / "h.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"h.json") as error:
        load_examples(hotpot_data(path=str(path), evaluation_questions=1), seed=0)
    assert told in str(error.value)


def test_hotpotqa_refuses_a_missing_file_and_a_single_one_without_evaluation(tmp_path):
    missing = str(tmp_path / "h.json")
    with pytest.raises(UserError, match=f"cannot read {missing}"):
        load_examples(hotpot_data(path=missing), seed=0)
    path = write_json(tmp_path / "h.json", [hotpot("h1"), hotpot("h2")])
    with pytest.raises(UserError, match=r"evaluation_path.*evaluation_questions"):
        load_examples(hotpot_data(path=path), seed=0)


def in_hub_columns(row: dict) -> dict:
    facts, context = row["supporting_facts"], row["context"]
    return {
        "id": row["_id"],
        **{key: row[key] for key in ("question", "answer", "type", "level")},
        "supporting_facts": {"title": [t for t, _ in facts], "sent_id": [s for _, s in facts]},
        "context": {"title": [t for t, _ in context], "sentences": [s for _, s in context]},
    }


@pytest.fixture
def hub_folder(tmp_path, monkeypatch) -> Path:
    """A download of the data set: h0 to h3 in two train files, e0 and e1 for validation."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "hotpot_qa"
    (folder / "distractor").mkdir(parents=True)
    for name, ids in {
        "train-00000-of-00002": ("h0", "h1"),
        "train-00001-of-00002": ("h2", "h3"),
        "validation-00000-of-00001": ("e0", "e1"),
    }.items():
        table = pa.Table.from_pylist([in_hub_columns(hotpot(i)) for i in ids])
        pq.write_table(table, folder / "distractor" / f"{name}.parquet")
    return folder


def test_hotpotqa_reads_a_folder_in_the_hubs_layout(tmp_path, hub_folder):
    split = load_examples(hotpot_data(path=str(hub_folder)), seed=0)
    assert [e.id for e in split.train] == ["h0", "h1", "h2", "h3"]
    assert [e.id for e in split.evaluation] == ["e0", "e1"]
    path = write_json(tmp_path / "h.json", [hotpot("h0"), hotpot("h1")])
    publishers = hotpot_data(path=path, evaluation_questions=1)
    assert split.train[0] == load_examples(publishers, seed=0).train[0]


def test_hotpotqa_limits_a_folder_in_the_hubs_layout(hub_folder):
    data = hotpot_data(path=str(hub_folder), train_questions=3, evaluation_questions=1)
    split = load_examples(data, seed=0)
    assert (len(split.train), len(split.evaluation)) == (3, 1)


def test_hotpotqa_names_what_a_folder_lacks(hub_folder):
    with pytest.raises(UserError, match=r"fullwiki holds no train-\*.parquet"):
        load_examples(hotpot_data(path=str(hub_folder), configuration="fullwiki"), seed=0)
    with pytest.raises(UserError, match=r"holds no dev-\*.parquet: .*data.evaluation_split"):
        load_examples(hotpot_data(path=str(hub_folder), evaluation_split="dev"), seed=0)


def test_hotpotqa_names_a_bad_row_and_column_of_a_folder(hub_folder):
    row = in_hub_columns(hotpot("e0")) | {"context": {"title": ["Book"]}}
    file = hub_folder / "distractor" / "validation-00000-of-00001.parquet"
    pq.write_table(pa.Table.from_pylist([row]), file)
    with pytest.raises(UserError, match="distractor/validation, question 1: context: "):
        load_examples(hotpot_data(path=str(hub_folder)), seed=0)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("missing/folder/of/mine", "cannot read .*mine: No such file"),
        ("notes.txt", "notes.txt holds no questions"),
    ],
)
def test_hotpotqa_refuses_a_path_that_is_nothing(tmp_path, name, told):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(UserError, match=told):
        load_examples(hotpot_data(path=str(tmp_path / name)), seed=0)


def test_hotpotqa_says_what_to_do_without_the_hub(monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(UserError, match=r"hotpotqa/hotpot_qa.*no route to host.*downloaded folder"):
        load_examples(hotpot_data(path="hotpotqa/hotpot_qa"), seed=0)


@needs_real_data
def test_the_publishers_file_is_read():
    path = str(REAL / "official" / "hotpotqa_official_100.json")
    split = load_examples(hotpot_data(path=path, evaluation_questions=20), seed=0)
    assert (len(split.train), len(split.evaluation)) == (80, 20)
    assert all(sum(d.is_gold for d in e.candidates) == 2 for e in split.train)
