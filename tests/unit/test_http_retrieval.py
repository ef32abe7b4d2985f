"""`retrieval.kind: http` against a server of its own: good replies, and every kind of bad one."""

from __future__ import annotations

import json
import threading
import time
from types import SimpleNamespace

import pytest

from dro_rl import remote
from dro_rl.errors import UserError
from dro_rl.records import Document, Example
from dro_rl.retrieval import add_candidates
from dro_rl.sections.retrieval import HttpRetrieval
from tests.servers import serving

pytestmark = pytest.mark.unit

GOLD = Document("Dogs", "Dogs bark.", is_gold=True)
QUESTIONS = [Example(f"q{i}", f"Which {i}?", ("yes",), (GOLD,)) for i in range(5)]


@pytest.fixture
def server():
    """Answers with what `served.reply(body)` returns: a value, bytes, or a status."""
    served = SimpleNamespace(asked=[], reply=echo)

    def answer(body, headers):
        served.asked.append(body)
        reply = served.reply(body)
        status = reply if isinstance(reply, int) else 200
        return status, reply if isinstance(reply, bytes) else json.dumps(reply).encode()

    with serving(answer) as address:
        served.url = f"{address}/search"
        yield served


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    wait = time.sleep
    monkeypatch.setattr(remote.time, "sleep", lambda s: wait(s / 100))


def hit(title="Dogs", text="Dogs bark.", score=1.5):
    return {"title": title, "text": text, "score": score}


def echo(body):
    return {"results": [[hit(), hit(q, f"about {q}", 1)] for q in body["questions"]]}


def ask(server, **settings) -> list[Example]:
    section = HttpRetrieval.model_validate(
        {"kind": "http", "url": server.url, "candidates": 2, "shuffle": False, **settings}
    )
    return add_candidates(QUESTIONS, [], section, seed=0, required=1)


def test_candidates_are_the_servers_in_batches(server):
    found = ask(server, batch_size=2)
    assert [len(body["questions"]) for body in server.asked] == [2, 2, 1]
    assert all(body["k"] == 2 for body in server.asked)
    for example in found:
        assert example.candidates == (GOLD, Document(example.question, f"about {example.question}"))
        assert example.scores == (1.5, 1)


def test_a_server_that_fails_once_is_asked_again(server):
    replies = iter([500, b"garbage"])
    server.reply = lambda body: next(replies, None) or echo(body)
    assert len(ask(server)[0].candidates) == 2
    assert len(server.asked) == 3


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (lambda body: 500, "gave no usable reply in 4 tries: it answered 500"),
        (lambda body: b"<html>", "gave no usable reply in 4 tries: its reply is not JSON"),
        (
            lambda body: threading.Event().wait(2),
            "gave no usable reply in 4 tries: no reply within 0.2 s",
        ),
        (lambda body: 404, "answered 404"),
        (lambda body: [], r'replied with something else than {"results"'),
        (lambda body: {"result": []}, "results: Field required"),
        (lambda body: {"results": echo(body)["results"][1:]}, "4 results to 5 questions"),
        (
            lambda body: {"results": [[hit()] * 3] * 5},
            r"3 passages to 'Which 0\?', more than the 2",
        ),
        (
            lambda body: {"results": [[], [hit(), {"title": "x", "score": 1}], [], [], []]},
            r"results.1.1.text: Field required \(question 'Which 1\?'\)",
        ),
        (
            lambda body: {"results": [[], [], [hit(score="high")], [], []]},
            r"results.2.0.score: .* \(question 'Which 2\?'\)",
        ),
        (
            lambda body: b'{"results": [[{"text": "a", "score": NaN}], [], [], [], []]}',
            r"results.0.0.score: .*finite.* \(question 'Which 0\?'\)",
        ),
        (lambda body: {"results": [[]] * 5}, "'q0' has 0 candidate documents"),
    ],
)
def test_a_bad_server_is_named_with_what_it_did(server, reply, told):
    server.reply = reply
    with pytest.raises(UserError, match=told):
        ask(server, timeout=0.2 if "0.2 s" in told else 60)


def test_an_address_that_is_none_is_refused():
    with pytest.raises(ValueError, match="must begin with http"):
        HttpRetrieval(kind="http", url="localhost:8100/search")
    with pytest.raises(ValueError, match="name a host"):
        HttpRetrieval(kind="http", url="http:///search")
    with pytest.raises(ValueError, match="DRO_RL_TOKEN"):
        HttpRetrieval(kind="http", url="http://me:secret@localhost/search")
