"""`dro-rl serve`: OpenAI's chat completions as an application, without a pair behind it."""

from __future__ import annotations

import asyncio
import json

import pytest
from fastapi.testclient import TestClient

from dro_rl.chat.app import make_app
from dro_rl.errors import UserError
from dro_rl.finding import Unanswerable
from dro_rl.pipeline import Answer
from dro_rl.records import Document
from dro_rl.remote import NoReply

pytestmark = pytest.mark.unit

ASKED = {"model": "run", "messages": [{"role": "user", "content": "Who?"}]}
FOUND = Answer(
    "Mila  Brandt, keeper",
    "[2]",
    (Document("Lake", "Its keeper is Mila Brandt."),),
    (Document("Hill", "Nobody."), Document("Lake", "Its keeper is Mila Brandt.")),
    (1,),
    (0.5, 2.5),
)
SOURCE = {"rank": 1, "title": "Lake", "text": "Its keeper is Mila Brandt.", "score": 2.5}


def client(
    answer: Answer | UserError = FOUND, token: str | None = None, timeout: float = 30
) -> TestClient:
    async def ask(question: str) -> Answer | UserError:
        if question == "sleep":
            await asyncio.sleep(60)
        if question == "break":
            raise ZeroDivisionError("a secret of ours")
        return answer

    return TestClient(make_app("run", ask, token, timeout))


def asking(text: str) -> dict:
    return {**ASKED, "messages": [{"role": "user", "content": text}]}


# --- replies --------------------------------------------------------------------------------------


def test_a_reply_has_the_answer_and_its_sources():
    reply = client().post("/v1/chat/completions", json=ASKED).raise_for_status().json()
    (choice,) = reply["choices"]
    assert choice["message"] == {
        "role": "assistant",
        "content": "Mila  Brandt, keeper",
        "sources": [SOURCE],
    }
    assert (reply["object"], reply["model"], choice["finish_reason"]) == (
        *("chat.completion", "run"),
        "stop",
    )


def test_a_stream_says_the_same_word_by_word():
    lines = client().post("/v1/chat/completions", json={**ASKED, "stream": True}).text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": "", "sources": [SOURCE]}
    assert [d["content"] for d in deltas[1:-1]] == ["Mila", "  Brandt,", " keeper"]
    assert [c["choices"][0]["finish_reason"] for c in chunks] == [None] * 4 + ["stop"]
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_the_question_is_the_last_message():
    asked: list[str] = []

    async def ask(question: str) -> Answer:
        asked.append(question)
        return FOUND

    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Before?"},
        {"role": "assistant", "tool_calls": [{"id": "1", "type": "function"}]},
        {"role": "tool", "tool_call_id": "1", "content": "7"},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
        {"role": "user", "content": [{"type": "text", "text": " Who?"}]},
    ]
    body = {
        **{**ASKED, "messages": messages, "temperature": 0.7, "max_tokens": 3},  # not read
        **{"response_format": {"type": "text"}, "modalities": ["text"], "functions": []},
        **{"audio": None, "tools": [], "n": 1},
    }
    app = make_app("run", ask, None, 30)
    assert TestClient(app).post("/v1/chat/completions", json=body).status_code == 200
    assert asked == ["Who?"]


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "param", "told"),
    [
        (b"{", 400, None, "Invalid JSON"),
        (b"[" * 1000, 400, None, "Invalid JSON"),
        ({**ASKED, "model": "gpt-9"}, 404, "model", "this server has 'run'"),
        ({**ASKED, "messages": []}, 400, "messages", "messages"),
        ({"model": "run"}, 400, "messages", "messages"),
        (asking("  "), 400, "messages", "not empty"),
        (
            {**ASKED, "messages": [{"role": "system", "content": "x"}]},
            400,
            "messages",
            "the user's",
        ),
        ({**ASKED, "n": 2}, 400, "n", "n: "),
        ({**ASKED, "tools": [{"type": "function"}]}, 400, "tools", "tools: "),
        ({**ASKED, "functions": [{"name": "f"}]}, 400, "functions", "functions: "),
        ({**ASKED, "response_format": {"type": "json_object"}}, 400, *("response_format",) * 2),
        ({**ASKED, "modalities": ["text", "audio"]}, 400, "modalities", "modalities.1: "),
        ({**ASKED, "audio": {"voice": "alloy"}}, 400, "audio", "audio: "),
        (
            {**ASKED, "messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            *(400, "messages", "messages.content"),
        ),
        ({**ASKED, "messages": [{"role": "tool", "content": "x"}]}, 400, "messages", "the user's"),
        (b" " * (2**20 + 1), 413, None, "send at most 1 MiB"),
    ],
)
def test_errors_have_openais_form(body, status, param, told):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    reply = client().post("/v1/chat/completions", content=content)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (status, param)
    assert told in error["message"] and error["code"]
    assert error["type"] == ("server_error" if status >= 500 else "invalid_request_error")


def test_who_waits_too_long_is_told():
    reply = client(timeout=0.2).post("/v1/chat/completions", json=asking("sleep"))
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (504, "timeout")
    assert "not answered within 0.2 s" in error["message"]


def test_the_token_is_asked_for_before_anything_is_read():
    asked = client(token="secret")
    for headers in ({}, {"Authorization": "Bearer other"}, {"Authorization": "secret"}):
        reply = asked.post("/v1/chat/completions", content=b"no JSON", headers=headers)
        assert (reply.status_code, reply.json()["error"]["code"]) == (401, "invalid_api_key")
        assert asked.get("/v1/models", headers=headers).status_code == 401
    headers = {"Authorization": "Bearer secret"}
    assert asked.post("/v1/chat/completions", json=ASKED, headers=headers).status_code == 200
    assert asked.get("/health").json() == {"status": "ok", "model": "run"}


def test_what_went_wrong_with_us_is_for_the_log(capfd):
    reply = client().post("/v1/chat/completions", json=asking("break"))
    assert reply.status_code == 500 and "secret of ours" not in reply.text
    assert "a secret of ours" in capfd.readouterr().err
    away = NoReply("retrieval.url: http://10.0.0.1/search gave no usable reply")
    reply = client(away).post("/v1/chat/completions", json=ASKED)
    assert reply.status_code == 502 and "10.0.0.1" not in reply.text
    assert "10.0.0.1" in capfd.readouterr().out


def test_a_retriever_that_refuses_us_is_for_the_log(capfd):
    """What remote.post_json makes of a `_Refused`, and what a damaged index says."""
    for ours in (
        "retrieval.url: http://10.0.0.1/search answered 401: bring a token",
        "/srv/10.0.0.1/index: is damaged",
    ):
        reply = client(UserError(ours)).post("/v1/chat/completions", json=ASKED)
        assert (reply.status_code, reply.json()["error"]["code"]) == (500, "internal_error")
        assert "10.0.0.1" not in reply.text and ours in capfd.readouterr().out


def test_requests_are_counted():
    asked = client(Unanswerable("this question is none of them"))
    reply = asked.post("/v1/chat/completions", json=ASKED)
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "cannot_answer")
    assert 'chat_requests_total{status="400"} 1.0' in asked.get("/metrics").text
    assert asked.get("/nowhere").json()["error"]["code"] == "not_found"
