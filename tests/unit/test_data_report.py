"""`dro-rl data`: its figures against a file of known content."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console as RichConsole

from dro_rl.data_report import measure_lengths, report_data, selector_writer
from dro_rl.recipe import Recipe
from dro_rl.sections.data import JsonlData
from dro_rl.sections.retrieval import GivenRetrieval
from dro_rl.tracking.console import Console
from tests.tiny import make_example, make_recipe

pytestmark = pytest.mark.unit


def row(number: int, documents: int, **changes) -> dict:
    example = make_example(number, documents)
    return {
        "id": example.id,
        "question": example.question,
        "answers": list(example.answers),
        "documents": [
            {"title": d.title, "text": d.text, "is_gold": d.is_gold} for d in example.candidates
        ],
        **changes,
    }


@pytest.fixture
def recipe(tmp_path) -> Recipe:
    """3 training questions with 2, 3 and 5 documents, of which 3 become candidates; one is
    answered by none of them, one has no gold document; and 1 question with yes for evaluation."""
    rows = [
        row(0, 2),
        row(1, 3, answers=["Atlantis"]),
        row(2, 5),
        row(3, 3, answers=["Yes"]),
    ]
    for document in rows[1]["documents"]:
        document["is_gold"] = False
    rows[2]["documents"].reverse()  # its gold document is the last, and not among the candidates
    rows[2]["documents"][1]["is_gold"] = True
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return make_recipe(tmp_path).model_copy(
        update={
            "data": JsonlData(kind="jsonl", path=str(path), evaluation_questions=1),
            "retrieval": GivenRetrieval(kind="given", candidates=3, shuffle=False),
        }
    )


def told(recipe: Recipe) -> str:
    file = io.StringIO()
    report_data(recipe, Console(RichConsole(file=file, width=100, soft_wrap=True)))
    return file.getvalue()


def line(text: str, start: str) -> str:
    found = [" ".join(each.split()) for each in text.splitlines() if each.strip().startswith(start)]
    assert len(found) == 1, text
    return found[0].removeprefix(start).strip()


def test_counts_and_shares_are_those_of_the_file(recipe):
    text = told(recipe)
    assert line(text, "questions") == "3 1"
    assert line(text, "reference answers a question") == "1.7 (1 to 2) 1.0 (1 to 1)"
    assert line(text, "documents that come with a question") == "3.3 (2 to 5) 3.0 (3 to 3)"
    assert line(text, "gold among them") == "1.0 (0 to 2) 1.0 (1 to 1)"
    assert line(text, "candidates after retrieval") == "2.7 (2 to 3) 3.0 (3 to 3)"
    # Of the first question's one gold document all, of the third's two one; the second has none.
    assert line(text, "gold documents among the candidates") == "75.0 % 100.0 %"
    assert line(text, "answer in the candidates") == "33.3 % 0.0 %"
    assert line(text, "answer is yes or no") == "0.0 % 100.0 %"
    assert line(text, "also in train") == "0"


def test_three_examples_are_shown_with_their_gold_documents_marked(recipe):
    text = told(recipe)
    shown = text[text.index("Name the") :]
    assert shown.count("(reference: ") == 3
    assert (
        "Name the Kovac hometown.  (reference: Lyon | Oslo)\n  *[1] Kovac hometown: Lyon." in shown
    )
    assert "\n   [2] Silva hometown: Oslo." in shown


def test_lengths_are_those_of_the_tokenizer_and_of_whole_prompts(recipe, tmp_path):
    writer = selector_writer(recipe)
    assert writer is not None
    examples = [make_example(0, documents=5)]
    lengths = measure_lengths(recipe, writer, examples, Console(RichConsole(file=io.StringIO())))
    assert len(lengths.question) == len(lengths.prompt) == 1
    assert (len(lengths.document), len(lengths.answer)) == (5, 2)
    whole = writer.select(examples[0].question, examples[0].candidates, 2)
    assert lengths.prompt == [len(whole.token_ids)]
    assert lengths.prompt[0] > sum(lengths.document) + lengths.question[0]


def test_prompts_that_are_cut_are_counted_at_their_whole_length(recipe):
    lengths = line(told(recipe), "selector prompt, uncut")
    longest = int(lengths.split()[-1])
    shorter = recipe.selector.model_copy(update={"max_length": longest + 8 - 1})
    text = told(recipe.model_copy(update={"selector": shorter}))
    assert line(text, "selector prompt, uncut") == lengths
    assert f" of 4 selector prompts have their documents cut to fit {longest - 1} tokens" in text
    assert "0 of 4 selector prompts" not in text


def test_before_the_warm_up_there_are_no_lengths_or_those_of_what_it_starts_from(recipe):
    missing = {"model": "runs/no-such-run/selector", "init": "scratch"}
    text = told(recipe.model_copy(update={"selector": recipe.selector.model_copy(update=missing)}))
    assert "no lengths: runs/no-such-run/selector" in text and "selector prompt" not in text
    other = {"model": "runs/no-such-run/selector", "init": recipe.selector.model}
    text = told(recipe.model_copy(update={"selector": recipe.selector.model_copy(update=other)}))
    assert line(text, "selector prompt, uncut") == line(told(recipe), "selector prompt, uncut")


def test_overlap_that_is_allowed_is_counted(recipe, tmp_path):
    path = Path(recipe.data.path)  # type: ignore[union-attr]
    data = JsonlData(kind="jsonl", path=str(path), evaluation_path=str(path), allow_overlap=True)
    assert line(told(recipe.model_copy(update={"data": data})), "also in train") == "4"
