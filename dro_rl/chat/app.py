"""The HTTP side: routes, errors and figures, whoever answers."""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    generate_latest,
)
from starlette.exceptions import HTTPException

from dro_rl.chat.wire import ChatError, completion, events, read_chat
from dro_rl.errors import UserError
from dro_rl.listening import brings_token, read_body
from dro_rl.redaction import without_secrets
from dro_rl.remote import NoReply

if TYPE_CHECKING:  # see dro_rl.chat.wire
    from dro_rl.pipeline import Answer

Ask = Callable[[str], Awaitable["Answer | UserError"]]
_LARGEST_BODY = 2**20  # bytes
_NO_TOKEN = "send the server's DRO_RL_TOKEN as api_key (a bearer token)"
_FAILED = "answering failed: the server's log says why"


def make_app(
    model: str,
    ask: Ask,
    token: str | None,
    timeout: float,
    fault: Callable[[], Exception | None] = lambda: None,
) -> FastAPI:
    """POST /v1/chat/completions, GET /v1/models, /health and /metrics.

    Args:
        model: the name that a request has to give.
        ask: answers a question, or says why it cannot be answered.
        token: what a request to /v1 has to bring as bearer token, if anything.
        timeout: for one request [s].
        fault: why answering fails at the moment, if it does; /health is 503 then.
    """
    app = FastAPI(title="dro_rl chat", openapi_url=None)
    began = int(time.time())
    metrics = CollectorRegistry()
    requests = Counter("chat_requests", "Requests by status", ["status"], registry=metrics)
    seconds = Histogram("chat_seconds", "Of a request, waiting included", registry=metrics)

    @app.exception_handler(ChatError)
    async def tell(request: Request, error: ChatError) -> JSONResponse:
        return JSONResponse(error.body(), error.status)

    @app.exception_handler(HTTPException)
    async def tell_of_http(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse(_in_openai_form(error).body(), error.status_code)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        start, status = time.monotonic(), 500
        try:
            async with asyncio.timeout(timeout):
                asked = read_chat(await read_body(request, token, _LARGEST_BODY), model)
                answer = await _answered(ask, asked.question)
            status = 200
        except (ChatError, HTTPException) as error:
            status = error.status if isinstance(error, ChatError) else error.status_code
            raise
        except TimeoutError as error:
            status = 504
            raise ChatError(504, f"not answered within {timeout:g} s", "timeout") from error
        except Exception as error:  # what it says is for the log, and not for whoever asks
            traceback.print_exc()
            raise ChatError(500, _FAILED, "internal_error") from error
        finally:
            requests.labels(str(status)).inc()
            seconds.observe(time.monotonic() - start)
        if asked.stream:
            return StreamingResponse(events(answer, model), media_type="text/event-stream")
        return JSONResponse(completion(answer, model))

    @app.get("/v1/models")
    async def models(request: Request) -> dict[str, Any]:
        if not brings_token(request.headers.get("authorization"), token):
            raise HTTPException(401)
        about = {"id": model, "object": "model", "created": began, "owned_by": "dro_rl"}
        return {"object": "list", "data": [about]}

    @app.get("/health")
    async def health() -> JSONResponse:
        failing = fault() is not None
        told = {"status": "failing" if failing else "ok", "model": model}
        return JSONResponse(told, 503 if failing else 200)

    @app.get("/metrics")
    async def prometheus() -> Response:
        return Response(generate_latest(metrics), media_type=CONTENT_TYPE_LATEST)

    return app


async def _answered(ask: Ask, question: str) -> Answer:
    from dro_rl.finding import Unanswerable  # loaded by now, if it answers

    answer = await ask(question)
    if isinstance(answer, Unanswerable):
        raise ChatError(400, without_secrets(str(answer)), "cannot_answer", "messages")
    if isinstance(answer, UserError):  # of files and addresses, which are not the caller's
        print(without_secrets(str(answer)), flush=True)
    if isinstance(answer, NoReply):
        raise ChatError(502, "the retriever gave no reply: the server's log says more", "no_reply")
    if isinstance(answer, UserError):
        raise ChatError(500, _FAILED, "internal_error")
    return answer


def _in_openai_form(error: HTTPException) -> ChatError:
    if error.status_code == 401:
        return ChatError(401, _NO_TOKEN, "invalid_api_key")
    codes = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}
    return ChatError(
        error.status_code, str(error.detail), codes.get(error.status_code, "invalid_request")
    )
