"""What an evaluation is told of the questions that its run was trained on, and whose it is."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console as RichConsole

from dro_rl.data import read_file
from dro_rl.inference import _results_matter, _warn_of_trained_on
from dro_rl.recipe import Recipe
from dro_rl.sections.data import JsonlData
from dro_rl.sections.retrieval import FusionRetrieval, HttpRetrieval
from dro_rl.tracking.console import Console
from tests.tiny import make_recipe

pytestmark = pytest.mark.unit


def write(path: Path, *names: str) -> JsonlData:
    rows = [
        {"id": f"{path.stem}-{n}", "question": f"Who wrote {n}?", "answers": ["x"], "documents": []}
        for n in names
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return JsonlData(kind="jsonl", path=str(path), evaluation_questions=1)


def told(recipe: Recipe, data: JsonlData) -> str:
    file = io.StringIO()
    console = Console(RichConsole(file=file, width=200))
    _warn_of_trained_on(recipe, read_file(data), console)
    return file.getvalue()


def test_questions_that_were_trained_on_are_counted(tmp_path):
    own = make_recipe(tmp_path).model_copy(update={"data": write(tmp_path / "own.jsonl", *"abcd")})
    assert "trained on 2 of these 3 questions" in told(own, write(tmp_path / "x.jsonl", *"bcd"))
    assert told(own, write(tmp_path / "y.jsonl", *"def")) == ""
    (tmp_path / "own.jsonl").unlink()
    text = told(own, write(tmp_path / "z.jsonl", *"bcd"))
    assert "not compared with the run's training questions: cannot read" in text


def test_where_and_in_what_portions_a_retriever_works_is_no_other_setting(tmp_path):
    def recipe(batch_size: int, probes: int = 64, **settings) -> Recipe:
        dense = {"kind": "dense", "model": "m", "batch_size": batch_size, "probes": probes}
        retrieval = {"kind": "fusion", "of": [{"kind": "bm25"}, dense], **settings}
        section = FusionRetrieval.model_validate(retrieval)
        return make_recipe(tmp_path).model_copy(update={"retrieval": section})

    first = _results_matter(recipe(1))
    assert first == _results_matter(recipe(2, cache_dir="elsewhere"))
    assert first != _results_matter(recipe(1, probes=2))
    assert first != _results_matter(recipe(1, candidates=3))


def test_another_retriever_server_is_another_setting(tmp_path):
    def recipe(url: str, timeout: float = 60) -> Recipe:
        section = HttpRetrieval(kind="http", url=url, timeout=timeout)
        return make_recipe(tmp_path).model_copy(update={"retrieval": section})

    first = _results_matter(recipe("http://one/search"))
    assert first == _results_matter(recipe("http://one/search", timeout=5))
    assert first != _results_matter(recipe("http://other/search"))
