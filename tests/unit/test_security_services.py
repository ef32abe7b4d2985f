"""Services of ours: to whom they listen, and what they tell."""

from __future__ import annotations

import socket
import threading
import time
from types import SimpleNamespace

import pytest
import uvicorn
from fastapi.testclient import TestClient

from dro_rl.cli_services import serve_retriever, serve_reward
from dro_rl.cli_trained import serve as serve_chat
from dro_rl.listening import listen
from dro_rl.remote import is_loopback
from dro_rl.reward import Reward, server
from dro_rl.reward.server import make_app

pytestmark = pytest.mark.unit


TOKEN = "planted-0123456789abcdef"


def test_services_listen_here_alone_unless_told_otherwise():
    import inspect

    for command in (serve_retriever, serve_reward, serve_chat):
        assert inspect.signature(command).parameters["host"].default == "127.0.0.1"
    assert [is_loopback(h) for h in ("127.0.0.1", "127.1.2.3", "localhost", "::1")] == [True] * 4
    assert [is_loopback(h) for h in ("0.0.0.0", "::", "", "10.0.0.1", "box")] == [False] * 5


class Ones(Reward):
    def score(self, outcomes):
        return [1.0] * len(outcomes)


@pytest.mark.parametrize(
    ("host", "value", "warned"),
    [("0.0.0.0", "", True), ("0.0.0.0", TOKEN, False), ("127.0.0.1", "", False)],
)
def test_a_reward_server_that_anyone_may_ask_says_so(monkeypatch, host, value, warned):
    monkeypatch.setenv("DRO_RL_TOKEN", value)
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: sockets[0].close())
    said: list[str] = []
    server.serve(Ones(), host, 0, said.append)
    assert any("reached from other machines: set DRO_RL_TOKEN" in s for s in said) == warned
    assert TOKEN not in "".join(said)


def test_the_token_is_the_same_with_white_space_around_it(monkeypatch):
    """A client sends it without, so a server that kept it would refuse its own."""
    monkeypatch.setenv("DRO_RL_TOKEN", f" {TOKEN}\n")
    apps = []
    monkeypatch.setattr(server, "make_app", lambda reward, token: apps.append(token))
    monkeypatch.setattr(uvicorn, "Config", lambda app, **_: None)
    monkeypatch.setattr(
        uvicorn,
        "Server",
        lambda config: type("S", (), {"run": lambda self, sockets: sockets[0].close()})(),
    )
    server.serve(Ones(), "127.0.0.1", 0, lambda text: None)
    assert apps == [TOKEN]


def test_a_body_that_drips_is_given_up_in_time(monkeypatch):
    monkeypatch.setattr(server, "_SLOWEST_BODY", 0.3)
    listening = listen("127.0.0.1", 0)
    running = uvicorn.Server(uvicorn.Config(make_app(Ones()), log_level="error"))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        while not running.started:
            time.sleep(0.01)
        with socket.create_connection(listening.getsockname(), timeout=10) as caller:
            caller.sendall(b"POST /score HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\n{")
            assert b"408" in caller.recv(200).split(b"\r\n")[0]
    finally:
        running.should_exit = True
        thread.join(10)


class Broken(Reward):
    def score(self, outcomes):
        raise LookupError("too picky")


def test_a_caller_is_never_sent_a_traceback():
    body = {
        "questions": [
            {"id": "q", "question": "?", "answers": ["a"], "selections": [{"documents": []}]}
        ]
    }
    replies = [TestClient(make_app(Broken())).post("/score", json=body)]
    replies += [
        TestClient(make_app(Ones())).post("/score", content=content)
        for content in (b"", b"{", b"[" * 5000, b'{"questions": ["\\ud800"]}', b"\xff")
    ]
    assert [reply.status_code for reply in replies] == [500, 422, 422, 422, 422, 422]
    for reply in replies:
        assert "Traceback" not in reply.text and ".py" not in reply.text


def test_a_search_that_fails_tells_the_caller_nothing_of_it(capfd):
    import asyncio

    from fastapi import HTTPException

    from dro_rl.retriever_server import RetrieverService

    class Request:
        @property
        def headers(self):
            raise KeyError("/secret/place")

    metric = type("M", (), {"labels": lambda s, *_: s, "inc": lambda s: 0, "observe": lambda *_: 0})
    service = SimpleNamespace(
        timeout=1, token="t", requests=metric(), seconds=metric(), _found=None
    )
    with pytest.raises(HTTPException) as told:
        asyncio.run(RetrieverService.func_or_class.search(service, Request()))
    assert (told.value.status_code, "/secret" in told.value.detail) == (500, False)
    assert "/secret/place" in capfd.readouterr().err
