"""Wizard of Wikipedia (Dinan et al., ICLR 2019, arXiv 1811.01241) in two layouts.

ParlAI's train.json, valid_*_split.json, test_*_split.json and data.json are JSON lists of
dialogues: {"chosen_topic", "chosen_topic_passage": [sentences], "dialog": [{"speaker", "text",
"retrieved_passages": [{title: [sentences]}], "checked_passage": {key: title}, "checked_sentence":
{key: sentence}}]}. Each of the wizard's turns but one that opens a dialogue is a question: the
topic and what was said so far, a line each; its answer is what the wizard said. Its documents are
what the wizard was shown, the topic's passage and those retrieved for the two turns before. Gold is
the passage that the wizard checked, by the rule of ParlAI's own code: the one of the checked title
if it holds the checked sentence, or else the first that does. Without such a sentence, or where the
wizard used none, none is gold.

KILT's wow-train-kilt.jsonl and its like (Petroni et al., NAACL 2021) have a turn a line, {"id",
"input", "output": [{"answer", "provenance"}]}, without passages: they come by retrieval.

The metric is KILT's F1 with what the wizard said.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

from dro_rl.data.files import MadeUpId
from dro_rl.data.hub import listed
from dro_rl.data.load import Layout, Text
from dro_rl.records import Document, Example
from dro_rl.sections.data import WizardData

_NOTHING = "no_passages_used"  # as a checked sentence


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore")


class _Turn(_Record):
    speaker: str  # "0_Wizard", "1_Apprentice"
    text: str
    retrieved_passages: list[dict[str, list[str]]] = []
    checked_passage: dict[str, str] = {}
    checked_sentence: dict[str, str] = {}


class _Dialogue(_Record):
    chosen_topic: Text
    chosen_topic_passage: list[str] = []
    dialog: list[_Turn]


class _Output(_Record):
    answer: str | None = None  # some have provenance alone


class _KiltTurn(_Record):
    id: Text
    input: Text
    output: Annotated[list[_Output], BeforeValidator(listed)]


def _examples(content: Any, name: str) -> Iterator[Example]:
    if "dialog" in content:
        yield from _turns(_Dialogue.model_validate(content), name)
    else:
        row = _KiltTurn.model_validate(content)
        answers = tuple(o.answer for o in row.output if o.answer)
        if answers:  # the hidden test set has none
            yield Example(row.id, row.input, answers)


def _turns(dialogue: _Dialogue, name: str) -> Iterator[Example]:
    said = [dialogue.chosen_topic]
    for number, turn in enumerate(dialogue.dialog):
        if number and "wizard" in turn.speaker.lower():
            shown = _shown(dialogue, number)
            gold = _checked(turn, shown)
            documents = tuple(
                Document(title, " ".join(sentences), title == gold)
                for title, sentences in shown.items()
            )
            made_up = MadeUpId(f"{name}-{number}")
            yield Example(made_up, "\n".join(said), (turn.text.strip(),), documents)
        said.append(turn.text.strip())


def _shown(dialogue: _Dialogue, number: int) -> dict[str, list[str]]:
    """The passages before the wizard in a turn, by title: the topic's, then those retrieved for
    the turn before, then those for the one before that. One title is shown once."""
    passages = [{dialogue.chosen_topic: dialogue.chosen_topic_passage}]
    for turn in reversed(dialogue.dialog[max(0, number - 2) : number]):
        passages.extend(turn.retrieved_passages)
    shown: dict[str, list[str]] = {}
    for passage in passages:
        for title, sentences in passage.items():
            if sentences:
                shown.setdefault(title, list(map(str.strip, sentences)))
    return shown


def _checked(turn: _Turn, shown: dict[str, list[str]]) -> str | None:
    """The title of the passage that the wizard checked."""
    sentence = next(iter(turn.checked_sentence.values()), "").strip()
    holders = [title for title, sentences in shown.items() if sentence in sentences]
    if not sentence or sentence == _NOTHING or not holders:
        return None
    title = next(iter(turn.checked_passage.values()), None)
    return title if title in holders else holders[0]


def layout(data: WizardData) -> Layout:
    return Layout(
        _examples,
        'a record is a dialogue with "chosen_topic" and "dialog" (ParlAI), or has "id", "input" '
        'and "output" (KILT)',
    )
