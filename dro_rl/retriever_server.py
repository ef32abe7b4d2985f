"""A recipe's retriever as a service: FastAPI through Ray Serve. docs/retrieval.md has the JSON."""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Header, HTTPException, Response
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    generate_latest,
)
from pydantic import BaseModel, Field
from ray import serve

from dro_rl.cluster import open_cluster
from dro_rl.data import load_examples
from dro_rl.errors import UserError
from dro_rl.recipe import Recipe
from dro_rl.records import Example
from dro_rl.retrieval import Corpus, Ranking, make_retriever, open_retriever
from dro_rl.retrieval_sections import Bm25Retrieval, CorpusSection, Searching
from dro_rl.tracking.console import Console

_NAME = "retriever"
_AT_ONCE = 32  # requests that are searched together
_WAITING = 1024  # requests in the queue; a further one is answered 503


class SearchRequest(BaseModel):
    """What POST /search takes."""

    questions: list[str] = Field(min_length=1, max_length=4096)
    k: int = Field(default=20, ge=1, le=1000)


class Hit(BaseModel):
    """A passage; a score is higher for the better one, on the retriever's own scale."""

    title: str
    text: str
    score: float


class SearchReply(BaseModel):
    """What it answers: for each question up to k passages, best first."""

    results: list[list[Hit]]


api = FastAPI(title="dro_rl retriever")


@serve.deployment(
    max_ongoing_requests=2 * _AT_ONCE,
    max_queued_requests=_WAITING,
    logging_config={"log_level": "WARNING", "enable_access_log": False},
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

    @api.post("/search")
    async def search(
        self, body: SearchRequest, authorization: Annotated[str | None, Header()] = None
    ) -> SearchReply:
        """The k best passages of each question."""
        start = time.monotonic()
        status = 500
        try:
            self._authorise(authorization)
            found = await asyncio.wait_for(self._found(body), self.timeout)
            status = 200
            return found
        except HTTPException as error:
            status = error.status_code
            raise
        except TimeoutError as error:
            status = 504
            raise HTTPException(504, f"not found within {self.timeout:g} s") from error
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

    def _authorise(self, header: str | None) -> None:
        given = (header or "").removeprefix("Bearer ")
        if self.token and not hmac.compare_digest(given.encode(), self.token.encode()):
            raise HTTPException(401, "send the server's DRO_RL_TOKEN as bearer token")

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
        UserError: the recipe searches no corpus, the index cannot be made, or the port is taken.
    """
    retrieval = _served(recipe)
    _check_port(host, port)
    token = os.environ.get("DRO_RL_TOKEN")
    examples: list[Example] = []
    if retrieval.corpus_path is None:
        split = load_examples(recipe.data, recipe.training.seed)
        examples = [*split.train, *split.evaluation]
    stop = threading.Event()
    # Ray Serve gives up on its HTTP process after 5 s, in which a busy machine cannot start one.
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    with open_cluster(recipe.cluster.model_copy(update={"mode": "ray"}), processes=2):
        # Made here, where an error is one message; the service then only opens it.
        with open_retriever(retrieval, examples, console.say) as retriever:
            corpus = retriever.corpus
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": host, "port": port},
            logging_config={"log_level": "WARNING", "enable_access_log": False},
        )
        app = RetrieverService.bind(retrieval, str(corpus.folder), timeout, token)
        serve.run(app, name=_NAME, route_prefix="/")
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        console.say(
            f"{retrieval.kind} over {len(corpus):,} passages: POST http://{host}:{port}/search; "
            "also /health, /metrics and /docs; Ctrl-C ends it"
        )
        if token is None and host not in ("127.0.0.1", "localhost", "::1"):
            console.say("whoever reaches this address may search: DRO_RL_TOKEN asks for a token")
        while not stop.wait(1):
            pass
        serve.delete(_NAME)


def _served(recipe: Recipe) -> Any:
    retrieval = recipe.retrieval
    own = isinstance(retrieval, Bm25Retrieval) and retrieval.corpus == "own"
    if not isinstance(retrieval, CorpusSection) or own:
        what = "corpus: own" if own else f"kind: {retrieval.kind}"
        raise UserError(
            f"retrieval.{what} searches no corpus that could be served: set retrieval.kind to "
            "bm25 (corpus: pooled, or corpus_path), dense, fusion or colbert"
        )
    # Its process has a working folder of its own.
    cache = str(Path(retrieval.cache_dir).expanduser().absolute())
    return retrieval.model_copy(update={"cache_dir": cache})


def _check_port(host: str, port: int) -> None:
    """Ray Serve itself says it in the log of another process."""
    try:
        with socket.create_server((host, port)):
            pass
    except OSError as error:
        raise UserError(
            f"cannot listen at {host}:{port}: {error.strerror}: choose another --port or --host"
        ) from error
