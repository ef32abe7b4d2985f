"""The recipe's `retrieval` section: how a question gets its candidates.

What makes an index is in a class of its own (`Bm25`, `Dense`, ...), apart from the corpus it is
made of and from what is done with its candidates, so that an index can be named by it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from dro_rl.remote import url_problem
from dro_rl.sections.base import MAY_CHANGE, Rate, Section

# --- ways to search -------------------------------------------------------------------------------


class Bm25(Section):
    """BM25 over stemmed words."""

    kind: Literal["bm25"]
    k1: PositiveFloat = 1.5
    b: Rate = 0.75


class Dense(Section):
    """One vector a passage, by a sentence-transformers model; cosine similarity."""

    kind: Literal["dense"]
    model: str = Field(description="a folder or a hub name of sentence-transformers")
    index: Literal["exact", "faiss"] = Field(
        default="exact",
        description="exact: every passage is compared; faiss: those of the nearest cells only",
    )
    probes: PositiveInt = Field(default=64, description="cells that index: faiss looks into")
    query_prefix: str = Field(default="", description='such as "query: ", where the model wants it')
    passage_prefix: str = ""
    batch_size: Annotated[PositiveInt, MAY_CHANGE] = Field(
        default=64, description="texts the model reads at once"
    )


class Colbert(Section):
    """ColBERTv2 (arXiv 2112.01488), one vector a token, by RAGatouille, which needs a Python
    environment of its own."""

    kind: Literal["colbert"]
    model: str = Field(
        default="colbert-ir/colbertv2.0", description="a folder or a hub name of a checkpoint"
    )
    max_length: PositiveInt = Field(default=256, description="tokens of a passage that are read")
    environment: Annotated[str, MAY_CHANGE] = Field(
        default=".venv-colbert/bin/python",
        description="the Python of that environment; `make colbert-env` makes it",
    )


class Pylate(Section):
    """Late interaction with a checkpoint of PyLate or ColBERT, exact: for corpora that fit the
    disk at one vector a token. PyLate needs a Python environment of its own."""

    kind: Literal["pylate"]
    model: str = Field(description="a folder or a hub name of a checkpoint")
    max_length: PositiveInt = Field(default=256, description="tokens of a passage that are read")
    batch_size: Annotated[PositiveInt, MAY_CHANGE] = Field(
        default=32, description="texts the model reads at once"
    )
    environment: Annotated[str, MAY_CHANGE] = Field(
        default=".venv-pylate/bin/python",
        description="the Python of that environment; `make pylate-env` makes it",
    )


Method = Annotated[Bm25 | Dense | Colbert | Pylate, Field(discriminator="kind")]


class Fusion(Section):
    """Reciprocal rank fusion (Cormack et al., 2009): sum of 1 / (constant + rank)."""

    kind: Literal["fusion"]
    of: list[Method] = Field(min_length=2, description="the ways to search, each with its `kind`")
    constant: PositiveInt = 60
    depth: PositiveInt = Field(default=100, description="how far each of them is read")


# --- the section ----------------------------------------------------------------------------------


class RetrievalSection(Section):
    candidates: PositiveInt = Field(default=20, description="N, documents the selector reads")
    shuffle: bool = Field(
        default=True,
        description="a seeded order per question and epoch, so that position tells nothing; false "
        "keeps the retriever's",
    )


class CorpusSection(RetrievalSection):
    """What is searched; without a path the paragraphs of all questions."""

    corpus_path: str | None = Field(
        default=None,
        description="passages: JSON lines of title and text, DPR's .tsv (.gz too), or a folder or "
        "hub name for `datasets`",
    )
    corpus_configuration: str | None = Field(default=None, description="of a `datasets` name")
    corpus_split: str = Field(default="train", description="of a `datasets` folder or name")
    cache_dir: Annotated[str, MAY_CHANGE] = Field(
        default="~/.cache/dro_rl/retrieval", description="where indexes are kept"
    )


class GivenRetrieval(RetrievalSection):
    """The documents that come with the question."""

    kind: Literal["given"]


class Bm25Retrieval(Bm25, CorpusSection):
    """BM25, stemmed, over a corpus or over each question's own documents."""

    corpus: Literal["pooled", "own"] = Field(
        default="pooled",
        description="pooled: paragraphs of all questions; own: rank the question's own",
    )

    @model_validator(mode="after")
    def _one_corpus(self) -> Bm25Retrieval:
        if self.corpus_path and self.corpus == "own":
            raise ValueError("corpus: own ranks the question's own documents: drop corpus_path")
        return self


class DenseRetrieval(Dense, CorpusSection):
    pass


class ColbertRetrieval(Colbert, CorpusSection):
    pass


class PylateRetrieval(Pylate, CorpusSection):
    pass


class FusionRetrieval(Fusion, CorpusSection):
    pass


class HttpRetrieval(RetrievalSection):
    """A retriever server, such as that of `dro-rl retriever serve`."""

    kind: Literal["http"]
    url: Annotated[str, MAY_CHANGE] = Field(
        description="of its search, such as http://127.0.0.1:8100/search"
    )
    timeout: Annotated[PositiveFloat, MAY_CHANGE] = Field(
        default=60, description="for one reply [s]"
    )
    batch_size: Annotated[PositiveInt, MAY_CHANGE] = Field(
        default=64, description="questions a request"
    )

    @field_validator("url")
    @classmethod
    def _has_a_host(cls, url: str) -> str:
        if problem := url_problem(url):
            raise ValueError(problem)
        return url


Searching = Bm25Retrieval | DenseRetrieval | ColbertRetrieval | PylateRetrieval | FusionRetrieval
Retrieval = Annotated[
    GivenRetrieval
    | Bm25Retrieval
    | DenseRetrieval
    | ColbertRetrieval
    | PylateRetrieval
    | FusionRetrieval
    | HttpRetrieval,
    Field(discriminator="kind"),
]
