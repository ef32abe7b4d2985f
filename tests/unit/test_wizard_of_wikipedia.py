"""Wizard of Wikipedia: what becomes of a dialogue."""

from __future__ import annotations

from typing import Any

import pytest

from dro_rl.records import Document, Example
from tests.made_data import read, write_lines, write_list

pytestmark = pytest.mark.unit


def wizard() -> dict[str, Any]:
    """The wizard opens, and speaks again with a checked passage of the topic, of its own last turn,
    of the apprentice's, with none, and with a sentence alone."""

    def turn(speaker: str, text: str, retrieved: list[str], **checked: Any) -> dict[str, Any]:
        passages = [{title: [f"{title} is old.", f"{title} is big."]} for title in retrieved]
        return {"speaker": speaker, "text": text, "retrieved_passages": passages, **checked}

    nothing = {"no_passages_used": "no_passages_used"}
    sea = {
        "checked_passage": {"self_1": "Sea"},
        "checked_sentence": {"self_Sea_0": "Sea is old."},
    }
    return {
        "chosen_topic": "Blue",
        "persona": "i like colours.",
        "chosen_topic_passage": ["Blue is a colour.", "So is red."],
        "dialog": [
            turn("0_Wizard", "Hello. ", ["Sky", "Sea"], checked_sentence=nothing),
            turn("1_Apprentice", "What is blue?", ["Sky", "Paint"]),
            turn("0_Wizard", "The sea.", ["Ship"], **sea),
            turn("1_Apprentice", "And the sky?", ["Air"]),
            turn("0_Wizard", "Yes.", [], checked_passage={}, checked_sentence=nothing),
            turn("1_Apprentice", "Is it big?", ["Blue"]),
            turn("0_Wizard", "Very.", [], checked_sentence={"partner_Blue_0": "So is red."}),
        ],
    }


def test_a_wizards_turn_is_a_question_with_what_it_was_shown(tmp_path):
    path = write_list(tmp_path / "train.json", wizard())
    first, second, third = read("wizard_of_wikipedia", path)
    assert first.question == "Blue\nHello.\nWhat is blue?"
    assert first.answers == ("The sea.",)
    assert first.id == "train.json-1-2"
    assert first.candidates == (
        Document("Blue", "Blue is a colour. So is red."),
        Document("Sky", "Sky is old. Sky is big."),  # of the apprentice's turn, then of its own
        Document("Paint", "Paint is old. Paint is big."),
        Document("Sea", "Sea is old. Sea is big.", is_gold=True),
    )
    assert [d.title for d in second.candidates] == ["Blue", "Air", "Ship"]
    assert not any(d.is_gold for d in second.candidates)
    assert third.candidates == (Document("Blue", "Blue is a colour. So is red.", is_gold=True),)


@pytest.mark.parametrize(
    ("checked", "gold"),
    [
        ({"checked_passage": {"a": "Sea"}, "checked_sentence": {"a": "Sky is old."}}, ["Sky"]),
        ({"checked_passage": {"a": "Sea"}, "checked_sentence": {"a": "no_passages_used"}}, []),
        ({"checked_passage": {"a": "Sea"}, "checked_sentence": {}}, []),
        ({"checked_passage": {"a": "Sea"}, "checked_sentence": {"a": "old"}}, []),
        ({"checked_passage": {}, "checked_sentence": {"a": "Paint is big."}}, ["Paint"]),
    ],
)
def test_the_wizards_gold_passage_holds_the_checked_sentence(tmp_path, checked, gold):
    dialogue = wizard()
    dialogue["dialog"][2].update(checked)
    first, *_ = read("wizard_of_wikipedia", write_list(tmp_path / "train.json", dialogue))
    assert [d.title for d in first.candidates if d.is_gold] == gold


def test_kilts_turn_without_an_answer_is_no_question(tmp_path):
    def turn(name: str, *output: Any) -> dict[str, Any]:
        return {"id": name, "input": f"Hello {name}", "output": list(output)}

    answered = [turn(name, {"answer": "Yes."}) for name in "ab"]
    path = write_lines(tmp_path / "wow.jsonl", turn("c", {"provenance": []}), turn("d"), *answered)
    assert [e.id for e in read("wizard_of_wikipedia", path)] == ["a", "b"]


def test_kilts_wizard_has_answers_and_no_passages(tmp_path):
    def turn(name: str) -> dict[str, Any]:
        provenance = [{"wikipedia_id": "12", "title": "Blue", "start_paragraph_id": 1}]
        output = [{"answer": "The sea."}, {"provenance": provenance}]
        return {"id": name, "input": f"Hello {name}\nWhat is blue?", "output": output}

    path = write_lines(tmp_path / "wow-dev-kilt.jsonl", turn("a"), turn("b"))
    expected = Example("a", "Hello a\nWhat is blue?", ("The sea.",))
    assert read("wizard_of_wikipedia", path)[0] == expected
