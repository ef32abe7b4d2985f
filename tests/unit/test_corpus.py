"""A corpus on disk: every source that it is read from, and what is told of a bad one."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import datasets
import huggingface_hub
import pytest

from dro_rl.errors import UserError
from dro_rl.records import Document, Example
from dro_rl.retrieval import corpus as corpus_module
from dro_rl.retrieval.corpus import Corpus, open_corpus
from dro_rl.sections.retrieval import Bm25Retrieval

pytestmark = pytest.mark.unit

PASSAGES = [Document(f"Title {i}", f'Text "{i}",\tin\nlines.') for i in range(10)]
ROWS = [{"title": d.title, "text": d.text} for d in PASSAGES]


def opened(tmp_path: Path, path: Path | str | None = None, examples=(), **settings) -> Corpus:
    section = Bm25Retrieval(
        kind="bm25",
        cache_dir=str(tmp_path / "cache"),
        corpus_path=str(path) if path else None,
        **settings,
    )
    return open_corpus(section, examples)


def jsonl(tmp_path: Path, rows=ROWS, name: str = "corpus.jsonl") -> Path:
    path = tmp_path / name
    path.write_text("\n\n".join(map(json.dumps, rows)))
    return path


def dpr(rows) -> bytes:
    def quoted(text: str) -> str:
        return '"' + text.replace('"', '""') + '"'

    lines = [f"{i}\t{quoted(d.text)}\t{d.title}" for i, d in enumerate(rows, start=1)]
    return "\n".join(["id\ttext\ttitle", *lines, ""]).encode()


def all_of(corpus: Corpus) -> list[Document]:
    assert [d for block in corpus.blocks() for d in block] == [
        corpus[row] for row in range(len(corpus))
    ]
    return [corpus[row] for row in range(len(corpus))]


def test_json_lines(tmp_path):
    assert all_of(opened(tmp_path, jsonl(tmp_path))) == PASSAGES
    untitled = jsonl(tmp_path, [{"text": "a", "id": 3}], "untitled.jsonl")
    assert all_of(opened(tmp_path, untitled)) == [Document("", "a")]


@pytest.mark.parametrize("name", ["psgs_w100.tsv", "psgs_w100.tsv.gz"])
def test_dprs_table(tmp_path, name):
    content = dpr(PASSAGES)
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert all_of(opened(tmp_path, tmp_path / name)) == PASSAGES


def test_a_datasets_folder(tmp_path):
    dataset = datasets.Dataset.from_list(ROWS)
    dataset.save_to_disk(tmp_path / "saved")
    assert all_of(opened(tmp_path, tmp_path / "saved")) == PASSAGES
    datasets.DatasetDict(passages=dataset).save_to_disk(tmp_path / "splits")
    assert all_of(opened(tmp_path, tmp_path / "splits", corpus_split="passages")) == PASSAGES
    (tmp_path / "files").mkdir()
    dataset.to_parquet(tmp_path / "files" / "train-00000-of-00001.parquet")
    assert all_of(opened(tmp_path, tmp_path / "files")) == PASSAGES
    with pytest.raises(UserError, match="corpus_split"):
        opened(tmp_path, tmp_path / "splits", corpus_split="train")
    datasets.Dataset.from_list([{"contents": "a"}]).save_to_disk(tmp_path / "columns")
    with pytest.raises(UserError, match=r"has the columns contents; a passage is in a column text"):
        opened(tmp_path, tmp_path / "columns")
    datasets.Dataset.from_list([*ROWS, {"title": "x", "text": " "}]).save_to_disk(tmp_path / "b")
    with pytest.raises(UserError, match=r"b, row 10: text must not be blank"):
        opened(tmp_path, tmp_path / "b")


def test_questions_documents_are_pooled_once_and_none_is_gold(tmp_path):
    examples = [
        Example("q1", "?", ("a",), (Document("A", "a", True), Document("B", "b"))),
        Example("q2", "?", ("b",), (Document("B", "b", True), Document("B", "c"))),
    ]
    pooled = [Document("A", "a"), Document("B", "b"), Document("B", "c")]
    assert all_of(opened(tmp_path, examples=examples)) == pooled


def test_blocks_and_rows_agree_where_there_are_several(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_module, "_BLOCK", 4)
    for count in (1, 4, 5, 10):
        rows = jsonl(tmp_path, ROWS[:count], f"{count}.jsonl")
        assert all_of(opened(tmp_path, rows)) == PASSAGES[:count]


def test_titles_and_texts_are_kept_apart(tmp_path):
    """Passages that only look alike when joined are two."""
    rows = [
        {"title": "a", "text": "bc"},
        {"title": "ab", "text": "c"},
        {"title": "a", "text": "bc"},
    ]
    assert len(opened(tmp_path, jsonl(tmp_path, rows))) == 2


def test_the_same_passages_are_one_corpus_wherever_they_come_from(tmp_path):
    table = tmp_path / "passages.tsv"
    table.write_bytes(dpr(PASSAGES))
    first = opened(tmp_path, jsonl(tmp_path))
    assert opened(tmp_path, table).folder == first.folder
    assert opened(tmp_path, jsonl(tmp_path, ROWS[:9], "nine.jsonl")).folder != first.folder
    assert opened(tmp_path, jsonl(tmp_path, ROWS[::-1], "back.jsonl")).folder != first.folder


def test_a_file_is_read_again_only_when_it_changed(tmp_path, monkeypatch):
    path = jsonl(tmp_path)
    first = opened(tmp_path, path)
    with monkeypatch.context() as patch:
        patch.setattr(corpus_module, "read_passages", None)
        assert opened(tmp_path, path).folder == first.folder
    jsonl(tmp_path, ROWS[:9])
    os.utime(path, ns=(1, 1))
    assert len(opened(tmp_path, path)) == 9


@pytest.mark.parametrize("content", ["", "null", '"gone"', '{"a": 1}'])
def test_a_bad_note_of_what_was_read_counts_as_none(tmp_path, content):
    path = jsonl(tmp_path)
    first = opened(tmp_path, path)
    (note,) = (tmp_path / "cache" / "sources").iterdir()
    note.write_text(content)
    assert opened(tmp_path, path).folder == first.folder
    assert json.loads(note.read_text()) == first.name


def test_who_may_read_the_cache_is_for_the_umask_to_say(tmp_path):
    before = os.umask(0o027)
    try:
        folder = opened(tmp_path, jsonl(tmp_path)).folder
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o750


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("~no-such-user/c.jsonl", "no user of that name"),
        ("~no-such-user/c.tsv", "no user of that name"),
        ("a" * 300 + ".jsonl", "cannot read"),
        ("a" * 300 + ".tsv", "cannot read"),
    ],
)
def test_a_path_that_no_file_can_have_is_named(tmp_path, path, told):
    with pytest.raises(UserError, match=told):
        opened(tmp_path, path)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("c.jsonl", b'{"text": "a"}\n{"text": ', "line 2: Invalid JSON"),
        ("c.jsonl", b'{"text": "a"}\n{"title": "b"}', "line 2: text: Field required"),
        ("c.jsonl", b'{"text": 3}', "line 1: text: Input should be a valid string"),
        ("c.jsonl", b'{"text": "a"}\n{"text": " "}', "line 2: text: must not be blank"),
        ("c.jsonl", b'{"text": "a"}\n{"text": "\xe9"}', "line 2: Invalid JSON"),
        ("c.jsonl", b"", "the corpus is empty"),
        ("c.jsonl", None, "cannot read"),
        ("c.tsv", None, "cannot read"),
        ("c.tsv", b"", r"begins with \[\], not with DPR's head"),
        ("c.tsv", b'{"text": "a"}\n', "not with DPR's head"),
        ("c.tsv", b"id\ttext\ttitle\n", "the corpus is empty"),
        ("c.tsv", b"id\ttext\ttitle\n1\ta\tb\n2\tc\n", "line 3: 2 columns of id, text, title"),
        ("c.tsv", b"id\ttext\ttitle\n1\t \tb\n", "line 2: .* text must not be blank"),
        ("c.tsv", b"id\ttext\ttitle\n1\ta\tb\n2\t\xe9\tb\n", "is not UTF-8"),
        ("c.tsv.gz", gzip.compress(dpr(PASSAGES))[:-20], "cut short or not gzip"),
        ("c.tsv.gz", dpr(PASSAGES), "cut short or not gzip"),
    ],
)
def test_a_bad_corpus_file_is_named(tmp_path, name, content, told):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=told) as error:
        opened(tmp_path, path)
    assert str(path) in str(error.value)
    if (tmp_path / "cache").exists():
        assert not list((tmp_path / "cache").glob("*-*"))  # nothing half-written


def test_a_name_that_is_nothing_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"cannot load nobody/nothing, split train"):
        opened(tmp_path, "nobody/nothing")
