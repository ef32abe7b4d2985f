"""`dro-rl serve`: a pair answers, asked by OpenAI's own client; without Ray."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import uvicorn
from fastapi.testclient import TestClient

from dro_rl.chat.answering import Answering, Service
from dro_rl.chat.app import make_app
from dro_rl.chat.service import serve_run
from dro_rl.errors import UserError
from dro_rl.finding import Unanswerable
from dro_rl.listening import address_of, listen
from dro_rl.pipeline import Answer, Pipeline, load_pipeline
from dro_rl.recipe_file import load_recipe
from dro_rl.remote import NoReply
from dro_rl.tracking.console import Console
from dro_rl.tracking.run_directory import RunDirectory
from tests.tiny import make_example, make_policies, make_recipe

pytestmark = pytest.mark.unit


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
    import openai  # takes a second, and the other tests need none of it

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
    question = {"messages": [{"role": "user", "content": make_example(0).question}], "model": "run"}

    def out_of_memory(*_: object) -> None:
        raise MemoryError("CUDA")

    with monkeypatch.context() as patched:
        patched.setattr(Pipeline, "_answers", out_of_memory)
        assert asked.post("/v1/chat/completions", json=question).status_code == 500
    failing = asked.get("/health")
    assert (failing.status_code, failing.json()["status"]) == (503, "failing")
    assert asked.post("/v1/chat/completions", json=question).status_code == 200
    assert asked.get("/health").status_code == 200


def test_openais_client_reads_our_errors(served):
    import openai

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
        monkeypatch.setattr(pipeline._finder, "find", lambda asked: [short, long][: len(asked)])
        answer, refused = pipeline.answer_each([short.question, long.question])
        assert isinstance(answer, Answer)
        assert isinstance(refused, Unanswerable) and "fewer words" in str(refused)


def test_a_retriever_that_is_away_is_asked_once_for_all(run, monkeypatch):
    calls = []

    def away(asked: list) -> None:
        calls.append(len(asked))
        raise NoReply("gave no usable reply")

    with load_pipeline(run) as pipeline:
        monkeypatch.setattr(pipeline._finder, "find", away)
        answers = pipeline.answer_each(["a?", "b?", "c?"])
    assert calls == [3] and [type(answer) for answer in answers] == [NoReply] * 3


# --- GPUs -----------------------------------------------------------------------------------------


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
    from dro_rl.chat.on_ray import gpus_of_replica  # Ray Serve takes a second

    recipe = make_recipe(tmp_path, rollout={"engine": "vllm", "tensor_parallel": shards})
    assert gpus_of_replica(recipe, machines) == gpus


def test_engines_that_no_machine_has_the_gpus_for_are_refused(tmp_path):
    from dro_rl.chat.on_ray import gpus_of_replica

    recipe = make_recipe(tmp_path, rollout={"engine": "vllm", "tensor_parallel": 2})
    with pytest.raises(UserError, match="more than 1: add rollout.tensor_parallel=1 to the comm"):
        gpus_of_replica(recipe, [1, 1])
