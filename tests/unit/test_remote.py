"""Requests to servers that recipes name: what is tried again, and what a user is told."""

import time
from types import SimpleNamespace

import pytest

from dro_rl import remote
from dro_rl.errors import UserError
from dro_rl.remote import post_json
from tests.servers import serving

pytestmark = pytest.mark.unit


@pytest.fixture
def server():
    """A local server; `replies` are (status, body, delay in seconds), the last one for ever."""
    served = SimpleNamespace(requests=[], replies=[(200, b"[1, 2]", 0)])

    def answer(body, headers):
        served.requests.append((body, headers))
        replies = served.replies
        status, content, delay = replies.pop(0) if len(replies) > 1 else replies[0]
        time.sleep(delay)
        return status, content

    with serving(answer) as address:
        served.url = f"{address}/score"
        yield served


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    wait = time.sleep
    monkeypatch.setattr(remote.time, "sleep", lambda s: wait(s / 100))


def ask(server, **options):
    return post_json(server.url, {"x": "é"}, setting="reward", **options)


def test_json_goes_there_and_back(server):
    assert ask(server) == [1, 2]
    assert server.requests[0][0] == {"x": "é"}
    assert "Authorization" not in server.requests[0][1]


def test_a_token_is_sent_when_there_is_one(server, monkeypatch):
    monkeypatch.setenv("DRO_RL_TOKEN", "secret")
    ask(server)
    assert server.requests[0][1]["Authorization"] == "Bearer secret"


def test_a_token_is_sent_without_white_space_around_it(server, monkeypatch):
    monkeypatch.setenv("DRO_RL_TOKEN", " secret\n")
    ask(server)
    assert server.requests[0][1]["Authorization"] == "Bearer secret"
    monkeypatch.setenv("DRO_RL_TOKEN", " ")
    ask(server)
    assert "Authorization" not in server.requests[1][1]


@pytest.mark.parametrize("token", ["sec\nret", "secr\u00e9t", "sec\x7fret"])
def test_a_token_that_no_header_carries_is_refused_and_not_shown(server, monkeypatch, token):
    monkeypatch.setenv("OTHER_TOKEN", token)
    with pytest.raises(UserError, match="OTHER_TOKEN: ") as error:
        ask(server, token_variable="OTHER_TOKEN")
    assert "sec" not in str(error.value)
    assert not server.requests


def test_a_password_in_the_url_is_refused_and_not_shown():
    with pytest.raises(UserError, match="reward: .*DRO_RL_TOKEN") as error:
        post_json("http://me:secret@localhost/score", {}, setting="reward")
    assert "secret" not in str(error.value)


def test_half_a_surrogate_pair_cannot_be_sent(server):
    with pytest.raises(UserError, match="reward: .* half of a surrogate pair"):
        post_json(server.url, {"x": "a \ud800 b"}, setting="reward")


def test_a_reply_that_is_too_deep_is_a_failed_one(server):
    server.replies = [(200, b"[" * 20_000, 0), (200, b"3", 0)]
    assert ask(server) == 3


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_or_broken_server_is_asked_again(server, status):
    server.replies = [(status, b"later", 0), (200, b"not json", 0), (200, b"3", 0)]
    assert ask(server) == 3
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        ((500, b"boom", 0), "it answered 500: boom"),
        ((200, b"<html>", 0), "its reply is not JSON: <html>"),
        ((200, b"", 0), "its reply is not JSON: (nothing)"),
        ((200, b"1", 60), "no reply within 0.2 s"),
    ],
)
def test_a_server_that_stays_broken_is_named_with_its_failure(server, reply, told):
    server.replies = [reply]
    with pytest.raises(UserError) as error:
        ask(server, timeout=0.2 if reply[-1] else 20, attempts=2)
    assert f"reward: {server.url} gave no usable reply in 2 tries: {told}" in str(error.value)


def test_a_refusal_is_told_at_once(server):
    server.replies = [(401, b"who are you?", 0)]
    with pytest.raises(UserError, match="answered 401: who are you?"):
        ask(server)
    assert len(server.requests) == 1


def test_nobody_there():
    with serving(lambda body, headers: (200, b"")) as address:
        pass  # it is gone after the block
    with pytest.raises(UserError, match="check that the server runs"):
        post_json(address, {}, setting="reward", attempts=2)


def test_a_reply_may_not_fill_the_memory(server, monkeypatch):
    monkeypatch.setattr(remote, "_LARGEST_REPLY", 2**20)
    server.replies = [(200, b" " * (2**20 + 1), 0)]
    with pytest.raises(UserError, match="sends more than 1 MiB"):
        ask(server)


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://x/y", "http://", "x", "http://[::1", "http://x:y/"]
)
def test_only_http(url):
    with pytest.raises(UserError, match="reward: "):
        post_json(url, {}, setting="reward")
