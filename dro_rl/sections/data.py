"""The recipe's `data` section: where questions come from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from dro_rl.sections.base import Rate, Section


class FactsData(Section):
    """The built-in closed world: generated questions, nothing to download."""

    kind: Literal["facts"]
    train_questions: PositiveInt = 1024
    evaluation_questions: PositiveInt = 200
    documents: int = Field(default=8, ge=4, le=20, description="documents a question")
    rumours: Rate = Field(default=0.3, description="share of documents that contradict the truth")
    echoes: Rate = Field(default=0.0, description="share of the others that repeat a fact")
    value_words: int = Field(default=1, ge=1, le=4, description="words in a fact's value")


class FileData(Section):
    """What all data sets share that are read from files, each a JSON list or JSON lines, plain or
    gzipped."""

    kind: str
    path: str
    evaluation_path: str | None = Field(default=None, description="the same for evaluation")
    evaluation_questions: PositiveInt | None = Field(
        default=None, description="how many; taken from the end of `path` when it is the only file"
    )
    train_questions: PositiveInt | None = Field(default=None, description="how many; default: all")
    allow_overlap: bool = Field(
        default=False,
        description="go on where a question is in both train and evaluation, whose figures then "
        "measure memory too",
    )
    unscorable_answers: Literal["refuse", "keep"] = Field(
        default="refuse",
        description="what to do with a question whose answers are articles and punctuation alone, "
        "which no metric sees: refuse the file, or keep it as publishers' own sets do by default",
    )


class HubData(FileData):
    """Data sets that are also read in the hub's layout: `path` is a publishers' file, a folder in
    the hub's layout (CONFIGURATION/SPLIT-*.parquet), or a hub name."""

    unscorable_answers: Literal["refuse", "keep"] = "keep"  # HotpotQA's dev set asks for "!!!"
    configuration: str | None = Field(default=None, description="of the hub's data set or folder")
    train_split: str = "train"
    evaluation_split: str = Field(
        default="validation", description="of the hub's data set, unless evaluation_path is a file"
    )


class HotpotData(HubData):
    """HotpotQA: hotpot_train_v1.1.json and its like, or hotpotqa/hotpot_qa."""

    kind: Literal["hotpotqa"]
    configuration: Literal["distractor", "fullwiki"] = "distractor"


class MusiqueData(HubData):
    """MuSiQue: musique_ans_v1.0_train.jsonl and its like, without unanswerable questions."""

    kind: Literal["musique"]


class WikimultihopData(HubData):
    """2WikiMultihopQA: train.json and dev.json."""

    kind: Literal["wikimultihop"]
    aliases_path: str | None = Field(
        default=None, description="id_aliases.json of version 1.1: further names of answers"
    )


class NaturalQuestionsData(HubData):
    """Natural Questions' open version: NQ-open.train.jsonl without passages, DPR's
    biencoder-nq-train.json and what readers are given (`ctxs`) with them."""

    kind: Literal["natural_questions"]
    hard_negatives: NonNegativeInt = Field(
        default=20, description="most of them a question that are read from a biencoder file"
    )


class WizardData(HubData):
    """Wizard of Wikipedia: the dialogues of train.json and its like with their passages, or KILT's
    wow-train-kilt.jsonl without."""

    kind: Literal["wizard_of_wikipedia"]


class DroData(FileData):
    """The DRO authors' format: question, answer, positive, retrieval."""

    kind: Literal["dro"]


class JsonlData(FileData):
    """JSON lines: id, question, answers, documents[title, text, is_gold]."""

    kind: Literal["jsonl"]


Data = Annotated[
    FactsData
    | HotpotData
    | MusiqueData
    | WikimultihopData
    | NaturalQuestionsData
    | WizardData
    | DroData
    | JsonlData,
    Field(discriminator="kind"),
]
