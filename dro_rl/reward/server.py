"""`dro-rl reward serve`: any reward over HTTP."""

from __future__ import annotations

import asyncio
import threading
import traceback
from collections.abc import Callable

from fastapi import FastAPI, HTTPException, Response
from fastapi import Request as HttpRequest
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.middleware.base import RequestResponseEndpoint

from dro_rl.errors import UserError
from dro_rl.jsonlines import describe
from dro_rl.listening import (
    address_of,
    answer_until_a_signal,
    brings_token,
    listen,
    warn_if_open,
)
from dro_rl.remote import bearer_token
from dro_rl.reward.base import Reward
from dro_rl.reward.checks import checked_scores
from dro_rl.reward.wire import Reply, Request, from_request

_LARGEST_BODY = 256 * 2**20  # bytes: some ten thousand questions with 20 documents each
_SLOWEST_BODY = 60  # seconds that a body may take to arrive
_AT_ONCE = 64  # connections; a further one is answered 503


def make_app(reward: Reward, token: str | None = None) -> FastAPI:
    """POST /score and GET /health; docs/rewards.md shows both.

    Args:
        token: callers of /score must send it as bearer token.
    """
    app = FastAPI(title=f"dro_rl reward {type(reward).__name__}", openapi_url=None)
    one_at_a_time = threading.Lock()  # a reward need not be made for threads

    @app.middleware("http")
    async def admit(request: HttpRequest, proceed: RequestResponseEndpoint) -> Response:
        """Before a body is read: who asks, and how much it is."""
        if request.url.path == "/score":
            if not brings_token(request.headers.get("authorization"), token):
                told = "a bearer token is needed: set DRO_RL_TOKEN as the server has"
                return JSONResponse({"detail": told}, 401)
            size = request.headers.get("content-length", "")
            if not size.isdecimal() or int(size) > _LARGEST_BODY:
                told = f"say the body's length, at most {_LARGEST_BODY} bytes: send fewer questions"
                return JSONResponse({"detail": told}, 413)
        return await proceed(request)

    @app.get("/health")
    async def health() -> dict[str, object]:
        name = type(reward).__name__
        return {"status": "ok", "reward": name, "scale": reward.scale, "needs": reward.needs}

    @app.post("/score")
    async def score(request: HttpRequest) -> Reply:
        asked = await _read(request)
        return await run_in_threadpool(answer, asked)

    def answer(asked: Request) -> Reply:
        with one_at_a_time:
            return _reply(reward, asked)

    return app


async def _read(request: HttpRequest) -> Request:
    try:
        async with asyncio.timeout(_SLOWEST_BODY):
            return Request.model_validate_json(await request.body())
    except TimeoutError as error:
        raise HTTPException(408, f"send the body within {_SLOWEST_BODY} s") from error
    except ValidationError as error:
        raise HTTPException(422, describe(error)) from error


def _reply(reward: Reward, request: Request) -> Reply:
    try:
        groups = from_request(request)
    except ValueError as error:
        raise HTTPException(400, str(error)) from error
    try:
        scores = iter(checked_scores(reward, [o for group in groups for o in group]))
    except UserError as error:
        raise HTTPException(400, str(error)) from error
    except Exception as error:
        traceback.print_exc()
        raise HTTPException(500, f"the reward raised {type(error).__name__}: {error}") from error
    rows = [[next(scores) for _ in group] for group in groups]
    return Reply(scale=reward.scale, needs=list(reward.needs), scores=rows)


def serve(reward: Reward, host: str, port: int, say: Callable[[str], None]) -> None:
    """Answer until interrupted. Port 0 takes a free one; DRO_RL_TOKEN is the token.

    Raises:
        UserError: the address cannot be taken.
    """
    listening = listen(host, port)
    token = bearer_token()
    address = address_of(host, listening.getsockname()[1])
    needs = ", ".join(reward.needs) or "nothing"
    say(f"{type(reward).__name__}: scale {reward.scale}, needs {needs}")
    say(f"reward: {address}/score" + ("" if token else "  (no DRO_RL_TOKEN: for anyone who asks)"))
    warn_if_open(host, token, say)
    answer_until_a_signal(make_app(reward, token), listening, _AT_ONCE)
