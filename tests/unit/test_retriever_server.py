"""What the retriever's service takes, and where it listens; without Ray."""

from __future__ import annotations

import signal
import socket
from contextlib import nullcontext
from io import StringIO
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from ray import serve
from rich.console import Console as RichConsole

from dro_rl import retriever_server
from dro_rl.errors import UserError
from dro_rl.ray_service import check_address, serve_until_a_signal
from dro_rl.retrieval.bm25 import Bm25Retriever
from dro_rl.retriever_server import SearchRequest, read_request, serve_forever
from dro_rl.sections.data import FactsData
from dro_rl.sections.retrieval import Bm25Retrieval
from dro_rl.tracking.console import Console
from tests.tiny import make_recipe

pytestmark = pytest.mark.unit

GOOD = {"questions": ["Who?"], "k": 2}


def client(token: str | None = None) -> TestClient:
    """A service that answers with what it understood."""
    app = FastAPI()

    async def search(request: Request) -> SearchRequest:
        return await read_request(request, token)

    # Under annotations of the future FastAPI would look for Request in this function.
    search.__annotations__ = {"request": Request}
    app.post("/search")(search)
    return TestClient(app)


def test_a_request_is_read():
    reply = client().post("/search", json=GOOD)
    assert (reply.status_code, reply.json()) == (200, GOOD)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "Invalid JSON"),
        (b"[]", "object"),
        (b"[" * 1000, "Invalid JSON"),
        (b'{"questions": []}', "questions: "),
        (b'{"questions": "Who?"}', "questions: "),
        (b'{"questions": ["\\ud800"]}', "Invalid JSON"),
        (b'{"questions": ["Who?"], "k": 0}', "k: "),
        (b'{"questions": ["Who?"], "k": 1001}', "k: "),
        (b'{"questions": [' + b'"a", ' * 100 + b'"a"], "k": 1000}', "101 questions of 1000"),
    ],
)
def test_a_malformed_request_is_told_what_is_wrong(body, told):
    reply = client().post("/search", content=body)
    assert reply.status_code == 422
    assert told in reply.json()["detail"]


def test_the_token_is_asked_for_before_anything_is_read():
    asked = client("secret")
    for headers in ({}, {"Authorization": "Bearer other"}, {"Authorization": "Bearer "}):
        reply = asked.post("/search", content=b"no JSON", headers=headers)
        assert reply.status_code == 401
    headers = {"Authorization": "Bearer secret"}
    assert asked.post("/search", json=GOOD, headers=headers).status_code == 200


def test_a_large_body_is_refused(monkeypatch):
    monkeypatch.setattr(retriever_server, "_LARGEST_BODY", 2**20)
    reply = client().post("/search", content=b" " * (2**20 + 1))
    assert (reply.status_code, reply.json()["detail"]) == (413, "send at most 1 MiB at once")


# --- on a cluster, without one -------------------------------------------------------------------


@pytest.fixture
def told(monkeypatch):
    """What Ray Serve is asked to do, on a cluster that is none."""
    calls: list[str] = []
    monkeypatch.setattr(serve, "start", lambda **_: calls.append("start"))
    monkeypatch.setattr(serve, "run", lambda *_, **__: calls.append("run"))
    monkeypatch.setattr(serve, "shutdown", lambda: calls.append("shutdown"))
    monkeypatch.setattr(serve, "status", lambda: SimpleNamespace(proxies={}, applications={}))
    monkeypatch.setattr(retriever_server, "open_cluster", lambda *_, **__: nullcontext())
    return calls


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_was_started_ends_with_a_signal(told, number):
    app: Any = None
    said = list[str]()

    def say(text: str) -> None:
        said.append(text)
        signal.raise_signal(number)

    before = signal.getsignal(signal.SIGTERM)
    try:
        serve_until_a_signal(app, "r", "::1", 81, "at {address}", "token", say)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert said == ["at http://[::1]:81"]
    assert told == ["start", "run", "shutdown"]


def test_further_signals_do_not_keep_what_was_started(told, monkeypatch):
    def shutdown() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        told.append("shutdown")

    app: Any = None
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    monkeypatch.setattr(serve, "shutdown", shutdown)
    serve_until_a_signal(
        app, "r", "::1", 81, "", "token", lambda _: signal.raise_signal(signal.SIGTERM)
    )
    assert told == ["start", "run", "shutdown"]
    assert [signal.getsignal(number) for number in numbers] == before


def bm25_recipe(tmp_path):
    section = Bm25Retrieval(kind="bm25", cache_dir=str(tmp_path / "cache"))
    data = FactsData(kind="facts", train_questions=4, evaluation_questions=2)
    return make_recipe(tmp_path).model_copy(update={"retrieval": section, "data": data})


def serve_it(tmp_path):
    serve_forever(bm25_recipe(tmp_path), "127.0.0.1", 0, 60, Console(RichConsole(file=StringIO())))


def test_anothers_ray_serve_is_left_alone(told, tmp_path, monkeypatch):
    running = SimpleNamespace(proxies={"node": "HEALTHY"}, applications={"theirs": None})
    monkeypatch.setattr(serve, "status", lambda: running)
    with pytest.raises(UserError, match=r"runs on this cluster already \(theirs\)"):
        serve_it(tmp_path)
    assert told == []


def test_an_index_that_cannot_be_opened_is_told_before_anything_is_served(
    told, tmp_path, monkeypatch
):
    def broken(self) -> None:
        raise ValueError("it is broken")

    monkeypatch.setattr(Bm25Retriever, "_open", broken)
    with pytest.raises(UserError, match="is damaged: it is broken"):
        serve_it(tmp_path)
    assert told == []


@pytest.mark.parametrize(("value", "token"), [("", None), (" x\n", "x")])
def test_an_empty_token_is_none(told, tmp_path, monkeypatch, value, token):
    given = []
    monkeypatch.setenv("DRO_RL_TOKEN", value)
    made = SimpleNamespace(bind=lambda *args: given.append(args[-1]))
    monkeypatch.setattr(retriever_server, "RetrieverService", made)
    monkeypatch.setattr(serve, "run", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        serve_it(tmp_path)
    assert given == [token]
    assert told == ["start", "shutdown"]


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_it_may_listen_at_an_address_of_ipv6():
    check_address("::1", 0)


def test_a_taken_port_and_a_name_that_is_none_are_told():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen at 127.0.0.1:{port}: .*--port"):
            check_address("127.0.0.1", port)
    with pytest.raises(UserError, match="cannot listen at .*--host"):
        check_address("a" * 100, 8100)
