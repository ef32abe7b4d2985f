"""The recipe's `retrieval` section: how a question gets its candidates."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from dro_rl.sections import Rate, Section


class RetrievalSection(Section):
    candidates: PositiveInt = Field(default=20, description="N, documents the selector reads")
    shuffle: bool = Field(
        default=True,
        description="a seeded order per question and epoch, so that position tells nothing; false "
        "keeps the retriever's",
    )


class GivenRetrieval(RetrievalSection):
    """The documents that come with the question."""

    kind: Literal["given"]


class Bm25Retrieval(RetrievalSection):
    """BM25, stemmed, over the paragraphs of all questions or over each question's own."""

    kind: Literal["bm25"]
    corpus: Literal["pooled", "own"] = Field(
        default="pooled",
        description="pooled: paragraphs of all questions; own: rank the question's own",
    )
    corpus_path: str | None = Field(
        default=None, description="JSON lines of title and text, instead"
    )
    k1: PositiveFloat = 1.5
    b: Rate = 0.75
    cache_dir: str = "~/.cache/dro_rl/retrieval"

    @model_validator(mode="after")
    def _one_corpus(self) -> Bm25Retrieval:
        if self.corpus_path and self.corpus == "own":
            raise ValueError("corpus: own ranks the question's own documents: drop corpus_path")
        return self


Retrieval = Annotated[GivenRetrieval | Bm25Retrieval, Field(discriminator="kind")]
