"""A recipe's retriever as a service: FastAPI through Ray Serve. docs/retrieval.md has the JSON."""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    generate_latest,
)
from pydantic import BaseModel, Field, ValidationError, model_validator
from ray import serve

from dro_rl import ray_service
from dro_rl.cluster.processes import open_cluster
from dro_rl.data import load_examples
from dro_rl.errors import UserError
from dro_rl.jsonlines import describe, located
from dro_rl.listening import read_body
from dro_rl.recipe import Recipe
from dro_rl.records import Example
from dro_rl.remote import bearer_token
from dro_rl.retrieval import Corpus, Ranking, make_retriever, open_retriever
from dro_rl.sections.retrieval import Bm25Retrieval, CorpusSection, Searching
from dro_rl.tracking.console import Console

_NAME = "retriever"
_AT_ONCE = 32  # requests that are searched together
_WAITING = 1024  # requests in the queue; a further one is answered 503
_MOST_PASSAGES = 100_000  # of a request
_LARGEST_BODY = 16 * 2**20  # bytes


class SearchRequest(BaseModel):
    """What POST /search takes."""

    questions: list[str] = Field(min_length=1, max_length=4096)
    k: int = Field(default=20, ge=1, le=1000)

    @model_validator(mode="after")
    def _fits_the_memory(self) -> SearchRequest:
        if len(self.questions) * self.k > _MOST_PASSAGES:
            raise ValueError(
                f"{len(self.questions)} questions of {self.k} passages are more than the "
                f"{_MOST_PASSAGES} passages of a request: send several"
            )
        return self


class Hit(BaseModel):
    """A passage; a score is higher for the better one, on the retriever's own scale."""

    title: str
    text: str
    score: float


class SearchReply(BaseModel):
    """What it answers: for each question up to k passages, best first."""

    results: list[list[Hit]]


api = FastAPI(title="dro_rl retriever")
# FastAPI itself would read a stranger's body before the token could be looked at.
_BODY = {"content": {"application/json": {"schema": SearchRequest.model_json_schema()}}}


async def read_request(request: Request, token: str | None) -> SearchRequest:
    """What a request asks; nothing of it is read before its token was found good.

    Raises:
        HTTPException: 401 without the token, 413 for a body that is too large, 422 for one that is
            malformed.
    """
    body = await read_body(request, token, _LARGEST_BODY)
    try:
        return SearchRequest.model_validate_json(body)
    except ValidationError as error:
        raise HTTPException(422, describe(error)) from error


@serve.deployment(
    max_ongoing_requests=2 * _AT_ONCE,
    max_queued_requests=_WAITING,
    logging_config=ray_service.QUIET,
)
@serve.ingress(api)
class RetrieverService:
    """Searches one corpus; requests that come together are searched together."""

    def __init__(
        self, retrieval: Searching, corpus: str, timeout: float, token: str | None
    ) -> None:
        """
        Args:
            corpus: the corpus's folder; its index is there already.
            timeout: for one request [s].
            token: what a request has to bring as bearer token, if anything.
        """
        self.timeout, self.token = timeout, token
        self.retriever = make_retriever(retrieval, Path(retrieval.cache_dir))
        self.retriever.index(Corpus(Path(corpus)))
        self.retriever.search(["What is this?"], 1)  # opens it
        self.metrics = metrics = CollectorRegistry()
        self.requests = Counter(
            "retriever_requests", "Requests by status", ["status"], registry=metrics
        )
        self.questions = Counter("retriever_questions", "Questions searched", registry=metrics)
        self.seconds = Histogram(
            "retriever_seconds", "Of a request, waiting included", registry=metrics
        )
        self.together = Histogram(
            "retriever_batch",
            "Requests searched at once",
            buckets=[1, 2, 4, 8, 16, 32],
            registry=metrics,
        )

    @api.post("/search", openapi_extra={"requestBody": {**_BODY, "required": True}})
    async def search(self, request: Request) -> SearchReply:
        """The k best passages of each question."""
        start = time.monotonic()
        status = 500
        try:
            async with asyncio.timeout(self.timeout):
                found = await self._found(await read_request(request, self.token))
            status = 200
            return found
        except HTTPException as error:
            status = error.status_code
            raise
        except TimeoutError as error:
            status = 504
            raise HTTPException(504, f"not found within {self.timeout:g} s") from error
        except Exception as error:  # what it says is for the log, and not for whoever asks
            traceback.print_exc()
            raise HTTPException(500, "the search failed: the server's log says why") from error
        finally:
            self.requests.labels(str(status)).inc()
            self.seconds.observe(time.monotonic() - start)

    @api.get("/health")
    async def health(self) -> dict[str, Any]:
        """What is searched."""
        retriever = self.retriever
        return {
            "status": "ok",
            "kind": retriever.kind,
            "passages": len(retriever.corpus),
            "index": retriever.folder.name,
        }

    @api.get("/metrics")
    async def prometheus(self) -> Response:
        """In the text format of Prometheus."""
        return Response(generate_latest(self.metrics), media_type=CONTENT_TYPE_LATEST)

    async def _found(self, body: SearchRequest) -> SearchReply:
        rankings = await self._together(body)
        return SearchReply(
            results=[
                [Hit(title=d.title, text=d.text, score=score) for d, score in ranking]
                for ranking in rankings
            ]
        )

    @serve.batch(max_batch_size=_AT_ONCE, batch_wait_timeout_s=0.005)
    async def _together(self, requests: list[SearchRequest]) -> list[list[Ranking]]:
        self.together.observe(len(requests))
        return await asyncio.to_thread(self._search, requests)

    def _search(self, requests: Sequence[SearchRequest]) -> list[list[Ranking]]:
        """One search for all requests of the same k: late interaction prunes by k."""
        found: dict[int, list[Ranking]] = {}
        for k in {request.k for request in requests}:
            questions = [q for r in requests if r.k == k for q in r.questions]
            found[k] = self.retriever.search(questions, k)
            self.questions.inc(len(questions))
        answers = []
        for request in requests:
            size = len(request.questions)
            answers.append(found[request.k][:size])
            found[request.k] = found[request.k][size:]
        return answers


def serve_forever(recipe: Recipe, host: str, port: int, timeout: float, console: Console) -> None:
    """Serve the recipe's retriever until a signal ends it. `DRO_RL_TOKEN` in the environment is
    asked of every search.

    Args:
        timeout: for one request [s].
    Raises:
        UserError: the recipe searches no corpus, the index cannot be made or opened, the port is
            taken, or the cluster runs Ray Serve already.
    """
    retrieval = _served(recipe)
    ray_service.check_address(host, port)
    token = bearer_token()
    examples: list[Example] = []
    if retrieval.corpus_path is None:
        split = load_examples(recipe.data, recipe.training.seed)
        examples = [*split.train, *split.evaluation]
    ray_service.prepare()
    with open_cluster(recipe.cluster.model_copy(update={"mode": "ray"}), processes=2):
        ray_service.check_nothing_is_served()
        # Made and opened here, where an error is one message; the service then only opens it.
        with open_retriever(retrieval, examples, console.say) as retriever:
            corpus = retriever.corpus
            retriever.rank(["What is this?"], 1)
        app = RetrieverService.bind(retrieval, str(corpus.folder), timeout, token)
        told = (
            f"{retrieval.kind} over {len(corpus):,} passages: POST {{address}}/search; "
            "also /health, /metrics and /docs; Ctrl-C ends it"
        )
        ray_service.serve_until_a_signal(app, _NAME, host, port, told, token, console.say)


def _served(recipe: Recipe) -> Any:
    retrieval = recipe.retrieval
    own = isinstance(retrieval, Bm25Retrieval) and retrieval.corpus == "own"
    if not isinstance(retrieval, CorpusSection) or own:
        what = "corpus: own" if own else f"kind: {retrieval.kind}"
        raise UserError(
            f"retrieval.{what} searches no corpus that could be served: set retrieval.kind to "
            "bm25 (corpus: pooled, or corpus_path), dense, fusion, colbert or pylate"
        )
    # Its process has a working folder of its own.
    cache = str(located(retrieval.cache_dir).absolute())
    return retrieval.model_copy(update={"cache_dir": cache})
