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
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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

from dro_rl.cluster import open_cluster
from dro_rl.data import load_examples
from dro_rl.errors import UserError
from dro_rl.jsonlines import describe, located
from dro_rl.recipe import Recipe
from dro_rl.records import Example
from dro_rl.remote import bearer_token, is_loopback
from dro_rl.retrieval import Corpus, Ranking, make_retriever, open_retriever
from dro_rl.retrieval_sections import Bm25Retrieval, CorpusSection, Searching
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
    given = request.headers.get("authorization", "").removeprefix("Bearer ")
    if token is not None and not hmac.compare_digest(given.encode(), token.encode()):
        raise HTTPException(401, "send the server's DRO_RL_TOKEN as bearer token")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _LARGEST_BODY:
            raise HTTPException(413, f"send at most {_LARGEST_BODY // 2**20} MiB at once")
    try:
        return SearchRequest.model_validate_json(body)
    except ValidationError as error:
        raise HTTPException(422, describe(error)) from error


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
    _check_port(host, port)
    token = bearer_token()
    examples: list[Example] = []
    if retrieval.corpus_path is None:
        split = load_examples(recipe.data, recipe.training.seed)
        examples = [*split.train, *split.evaluation]
    # Ray Serve gives up on its HTTP process after 5 s, in which a busy machine cannot start one.
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    with open_cluster(recipe.cluster.model_copy(update={"mode": "ray"}), processes=2):
        _check_nothing_is_served()
        # Made and opened here, where an error is one message; the service then only opens it.
        with open_retriever(retrieval, examples, console.say) as retriever:
            corpus = retriever.corpus
            retriever.rank(["What is this?"], 1)
        app = RetrieverService.bind(retrieval, str(corpus.folder), timeout, token)
        with _running(app, host, port) as address:
            stop = threading.Event()
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: stop.set())
            console.say(
                f"{retrieval.kind} over {len(corpus):,} passages: POST {address}/search; "
                "also /health, /metrics and /docs; Ctrl-C ends it"
            )
            if token is None and not is_loopback(host):
                console.say(
                    f"warning: {host} is reached from other machines, and whoever reaches it may "
                    "search: set DRO_RL_TOKEN to ask for a token"
                )
            while not stop.wait(1):
                pass


@contextmanager
def _running(app: serve.Application, host: str, port: int) -> Iterator[str]:
    """The address of a service, which ends with the block, also on a cluster that goes on."""
    try:
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": host, "port": port},
            logging_config={"log_level": "WARNING", "enable_access_log": False},
        )
        serve.run(app, name=_NAME, route_prefix="/")
        yield f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    finally:
        serve.shutdown()


def _check_nothing_is_served() -> None:
    """A cluster has one Ray Serve, with one address: what another started stays as it is."""
    status = serve.status()
    if status.proxies or status.applications:
        names = ", ".join(status.applications) or "nothing at the moment"
        raise UserError(
            f"cluster.address: Ray Serve runs on this cluster already ({names}): end it there "
            "(`serve shutdown`), or serve from another cluster"
        )


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


def _check_port(host: str, port: int) -> None:
    """Ray Serve itself says it in the log of another process."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.create_server(address[:2], family=family):
            pass
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"cannot listen at {host}:{port}: {reason}: choose another --port or --host"
        ) from error
