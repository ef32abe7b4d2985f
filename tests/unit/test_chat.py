"""`dro-rl serve`: OpenAI's chat completions, asked by OpenAI's own client; without Ray."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import openai
import pytest
import uvicorn
from fastapi.testclient import TestClient

from dro_rl.chat.answering import Answering, Service
from dro_rl.chat.app import make_app
from dro_rl.chat.on_ray import gpus_of_replica
from dro_rl.chat.service import serve_run
from dro_rl.errors import UserError
from dro_rl.listening import address_of, listen
from dro_rl.pipeline import Answer, Pipeline, Unanswerable, load_pipeline
from dro_rl.recipe_file import load_recipe
from dro_rl.records import Document
from dro_rl.remote import NoReply
from dro_rl.tracking.console import Console
from dro_rl.tracking.run_directory import RunDirectory
from tests.tiny import make_example, make_policies, make_recipe

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


# --- a pair ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run whose questions come with their documents."""
    folder = tmp_path_factory.mktemp("chat")
    make_policies(folder)
    rows = [
        {
            "id": e.id,
            "question": e.question,
            "answers": [*e.answers],
            "documents": [{"title": d.title, "text": d.text} for d in e.candidates],
        }
        for e in map(make_example, range(4))
    ]
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = make_recipe(
        folder,
        data={"path": str(data), "evaluation_questions": 1},
        rollout={"decoding": "distinct"},
        tracking={"run_dir": str(folder / "run")},
    )
    return RunDirectory.create(recipe).path


@pytest.fixture(scope="module")
def served(run) -> Iterator[str]:
    """The address of its service in this process."""
    recipe = load_recipe(str(run / "recipe.yaml"))
    models = {"selector": recipe.selector.model, "generator": recipe.generator.model}
    service = Service(recipe, models, "run", "127.0.0.1", 0, 20, "secret")  # type: ignore[arg-type]
    listening = listen("127.0.0.1", 0)
    app = make_app("run", Answering(service).one, "secret", 20)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    yield address_of("127.0.0.1", listening.getsockname()[1])
    server.should_exit = True
    thread.join(timeout=10)


def test_openais_client_gets_what_the_pipeline_answers(served, run):
    asked = openai.OpenAI(base_url=f"{served}/v1", api_key="secret", max_retries=0)
    assert [model.id for model in asked.models.list()] == ["run"]
    pipeline = load_pipeline(run)
    for number in range(4):
        question = make_example(number).question
        ours = pipeline.answer(question)
        messages: list = [{"role": "user", "content": question}]
        reply = asked.chat.completions.create(model="run", messages=messages)
        message = reply.choices[0].message
        assert message.content == ours.text
        shown = message.model_extra["sources"]  # type: ignore[index]
        assert [(s["title"], s["text"]) for s in shown] == [
            (d.title, d.text) for d in ours.documents
        ]
        assert [s["rank"] for s in shown] == [*range(1, len(ours.documents) + 1)]
        chunks = list(asked.chat.completions.create(model="run", messages=messages, stream=True))
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == ours.text
        assert chunks[0].choices[0].delta.model_extra == {"sources": shown}


def test_health_tells_of_a_fault_until_an_answer_is_found(run, monkeypatch):
    recipe = load_recipe(str(run / "recipe.yaml"))
    models = {"selector": recipe.selector.model, "generator": recipe.generator.model}
    service = Service(recipe, models, "run", "127.0.0.1", 0, 20, None)  # type: ignore[arg-type]
    answering = Answering(service)
    asked = TestClient(make_app("run", answering.one, None, 20, lambda: answering.fault))
    question = asking(make_example(0).question)

    def out_of_memory(*_: object) -> None:
        raise MemoryError("CUDA")

    with monkeypatch.context() as patched:
        patched.setattr(Pipeline, "_answers", out_of_memory)
        assert asked.post("/v1/chat/completions", json=question).status_code == 500
    failing = asked.get("/health")
    assert (failing.status_code, failing.json()["status"]) == (503, "failing")
    assert asked.post("/v1/chat/completions", json=question).status_code == 200
    assert asked.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("gpu", "engine"), [(True, "vllm"), (True, "transformers"), (False, "vllm")]
)
def test_two_engines_that_do_not_fit_one_gpu_are_refused(tmp_path, monkeypatch, gpu, engine):
    recipe = make_recipe(tmp_path, rollout={"engine": engine, "gpu_memory_utilization": 0.8})
    monkeypatch.setattr("dro_rl.chat.service.has_gpu", lambda: gpu)
    told = "=0.4 to the command" if gpu and engine == "vllm" else "not a run directory"
    with pytest.raises(UserError, match=told):
        serve_run(tmp_path / "none", recipe, None, "127.0.0.1", 0, 60, Console())


@pytest.mark.parametrize(
    ("shards", "machines", "gpus"), [(1, [0, 0], 0), (1, [0, 8], 1), (2, [0], 0), (2, [1, 4], 2)]
)
def test_a_replica_has_as_many_gpus_as_one_engine_needs(tmp_path, shards, machines, gpus):
    recipe = make_recipe(tmp_path, rollout={"engine": "vllm", "tensor_parallel": shards})
    assert gpus_of_replica(recipe, machines) == gpus


def test_engines_that_no_machine_has_the_gpus_for_are_refused(tmp_path):
    recipe = make_recipe(tmp_path, rollout={"engine": "vllm", "tensor_parallel": 2})
    with pytest.raises(UserError, match="more than 1: add rollout.tensor_parallel=1 to the comm"):
        gpus_of_replica(recipe, [1, 1])


def test_openais_client_reads_our_errors(served):
    def ask(model: str = "run", question: str = "Who?", token: str = "secret") -> None:
        client = openai.OpenAI(base_url=f"{served}/v1", api_key=token, max_retries=0)
        client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": question}]
        )

    with pytest.raises(openai.AuthenticationError, match="DRO_RL_TOKEN"):
        ask(token="other")
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-9' here"):
        ask(model="gpt-9")
    with pytest.raises(openai.BadRequestError, match="this question is none of them") as refused:
        ask(question="Who was never asked about?")
    assert refused.value.code == "cannot_answer"


def test_one_question_that_cannot_be_answered_keeps_no_other_from_it(run):
    with load_pipeline(run) as pipeline:
        known = [make_example(0).question, make_example(1).question]
        first, refused, second = pipeline.answer_each([known[0], "Never asked?", known[1]])
        assert isinstance(refused, Unanswerable) and "none of them" in str(refused)
        assert [first, second] == [pipeline.answer(question) for question in known]


def test_a_question_that_is_too_long_keeps_no_other_from_an_answer(run, monkeypatch):
    with load_pipeline(run) as pipeline:
        short, long = make_example(0), make_example(1)
        long = replace(long, question="Where " * 300)
        monkeypatch.setattr(pipeline, "_found", lambda asked: [short, long][: len(asked)])
        answer, refused = pipeline.answer_each([short.question, long.question])
        assert isinstance(answer, Answer)
        assert isinstance(refused, Unanswerable) and "fewer words" in str(refused)


def test_a_retriever_that_is_away_is_asked_once_for_all(run, monkeypatch):
    calls = []

    def away(asked: list) -> None:
        calls.append(len(asked))
        raise NoReply("gave no usable reply")

    with load_pipeline(run) as pipeline:
        monkeypatch.setattr(pipeline, "_found", away)
        answers = pipeline.answer_each(["a?", "b?", "c?"])
    assert calls == [3] and [type(answer) for answer in answers] == [NoReply] * 3
