"""The recipe's `data` section: where questions come from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from dro_rl.sections import Rate, Section


class FactsData(Section):
    """The built-in closed world: generated questions, nothing to download."""

    kind: Literal["facts"]
    train_questions: PositiveInt = 1024
    evaluation_questions: PositiveInt = 200
    documents: int = Field(default=8, ge=4, le=20, description="documents a question")
    rumours: Rate = Field(default=0.3, description="share of documents that contradict the truth")
    echoes: Rate = Field(default=0.0, description="share of the others that repeat a fact")
    value_words: int = Field(default=1, ge=1, le=4, description="words in a fact's value")


class HotpotData(Section):
    """HotpotQA: the publishers' JSON file, or the hub's layout through `datasets`."""

    kind: Literal["hotpotqa"]
    path: str = Field(description="a .json file, a folder in the hub's layout, or a hub name")
    configuration: Literal["distractor", "fullwiki"] = "distractor"
    train_split: str = "train"
    evaluation_split: str = "validation"
    evaluation_path: str | None = Field(
        default=None, description="another .json file for evaluation"
    )
    evaluation_questions: PositiveInt | None = Field(
        default=None,
        description="how many; taken from the end of one .json file when it is the only one",
    )
    train_questions: PositiveInt | None = None


class JsonlData(Section):
    """JSON lines: id, question, answers, documents[title, text, is_gold]."""

    kind: Literal["jsonl"]
    path: str
    evaluation_path: str | None = Field(default=None, description="another file for evaluation")
    evaluation_questions: PositiveInt | None = Field(
        default=None, description="how many; taken from the end of `path` when it is the only file"
    )
    train_questions: PositiveInt | None = None


Data = Annotated[FactsData | HotpotData | JsonlData, Field(discriminator="kind")]
