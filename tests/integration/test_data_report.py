"""`dro-rl data` on real questions: the counts and gold shares that are known of the files."""

from __future__ import annotations

import gzip
import io

import pytest
from rich.console import Console as RichConsole

from dro_rl.data_report import report_data
from dro_rl.errors import UserError
from dro_rl.recipe import Recipe
from dro_rl.recipe_file import load_recipe
from dro_rl.tracking.console import Console
from tests.commands import dro_rl
from tests.real_data import REAL, needs_real_data

pytestmark = pytest.mark.integration

# files of train and evaluation; questions; documents and gold documents a question, in each
KNOWN = {
    "hotpotqa": (
        ("hotpotqa_train.jsonl", "hotpotqa_validation.jsonl"),
        ("498", "1,695"),
        ("9.9 (2 to 10)", "9.9 (2 to 10)"),
        ("2.0 (2 to 2)", "2.0 (2 to 2)"),
    ),
    "hotpotqa, full wiki": (
        ("hotpotqa_train.jsonl", "hotpotqa_fullwiki_validation.jsonl"),
        ("498", "600"),
        ("9.9 (2 to 10)", "10.0 (10 to 10)"),
        ("2.0 (2 to 2)", "1.1 (0 to 2)"),
    ),
    "musique, 2wikimultihopqa": (
        ("musique.jsonl", "2wikimultihopqa.jsonl"),
        ("311", "957"),
        ("20.0 (20 to 20)", "10.0 (8 to 10)"),
        ("2.4 (2 to 4)", "2.4 (2 to 4)"),
    ),
    "nq, wizard of wikipedia": (
        ("nq.jsonl", "wow_sample.jsonl"),
        ("3,355", "22"),
        ("2.2 (1 to 5)", "12.5 (7 to 15)"),
        ("1.2 (0 to 5)", "1.0 (1 to 1)"),
    ),
}


def recipe(train: str, evaluation: str) -> Recipe:
    """Each question's own documents, and no selector whose tokenizer could measure them."""
    files = f"path: {REAL / train}, evaluation_path: {REAL / evaluation}"
    return load_recipe(
        "recipes/hotpot_local.yaml",
        [
            f"data={{kind: jsonl, {files}, unscorable_answers: keep}}",
            "retrieval={kind: given, candidates: 20}",
            "selector.documents=1",
            "selector.model=runs/made-by-no-warm-up/selector",
        ],
    )


@needs_real_data
@pytest.mark.parametrize("name", KNOWN)
def test_counts_and_gold_shares_are_those_of_the_sources(name):
    (train, evaluation), questions, documents, gold = KNOWN[name]
    file = io.StringIO()
    report_data(recipe(train, evaluation), Console(RichConsole(file=file)))
    lines = [" ".join(each.split()) for each in file.getvalue().splitlines()]
    assert f"questions {' '.join(questions)}" in lines
    assert f"documents that come with a question {' '.join(documents)}" in lines
    assert f"gold among them {' '.join(gold)}" in lines
    assert "gold documents among the candidates 100.0 % 100.0 %" in lines
    assert "also in train 0" in lines


@needs_real_data
def test_the_publishers_file_by_a_recipe_that_the_project_carries():
    path = REAL / "official" / "hotpotqa_official_100.json"
    out = dro_rl("data", "recipes/hotpot_local.yaml", f"data.path={path}").succeeded().out
    lines = [" ".join(each.split()) for each in out.splitlines()]
    assert "questions 70 30" in lines
    assert "gold among them 2.0 (2 to 2) 2.0 (2 to 2)" in lines
    assert "candidates after retrieval 20.0 (20 to 20) 20.0 (20 to 20)" in lines


@needs_real_data
def test_real_questions_on_both_sides_are_refused():
    """The full-wiki questions are dev questions too, with other documents."""
    both = recipe("hotpotqa_validation.jsonl", "hotpotqa_fullwiki_validation.jsonl")
    with pytest.raises(UserError, match=r"is both in train \(id '.*\(218 such questions\)"):
        report_data(both, Console())


@needs_real_data
def test_real_answers_that_no_metric_sees_are_refused_with_their_line():
    path = REAL / "hotpotqa_fullwiki_validation.jsonl"
    dro_rl(
        *("data", "recipes/hotpot_local.yaml"),
        f"data={{kind: jsonl, path: {path}, evaluation_questions: 9}}",
    ).refused(f"{path}, line 538: ", "'!!!'", "data.unscorable_answers: keep")


def test_a_damaged_file_is_one_message_and_exit_code_2(tmp_path):
    path = tmp_path / "questions.jsonl.gz"
    path.write_bytes(gzip.compress(b"{}" * 5000)[:-12])
    settings = f"data={{kind: jsonl, path: {path}, evaluation_questions: 9}}"
    dro_rl("data", "recipes/hotpot_local.yaml", settings).refused(
        f"{path}: its gzip data is damaged"
    )
