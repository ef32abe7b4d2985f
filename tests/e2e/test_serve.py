"""`dro-rl serve` as a user starts it, asked by OpenAI's client."""

from __future__ import annotations

import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest

from dro_rl.data import load_examples
from dro_rl.pipeline import load_pipeline
from dro_rl.recipe_file import load_recipe
from dro_rl.tracking.run_directory import RunDirectory
from tests.commands import dro_rl, start

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The demo before its first iteration: policies that can read."""
    place = f"tracking.run_dir={tmp_path_factory.mktemp('serve') / 'warm'}"
    small = ("data.train_questions=8", "data.evaluation_questions=8")
    return RunDirectory.create(load_recipe("recipes/demo.yaml", (*small, place))).path


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def wait_until_ready(process, address: str) -> None:
    for _ in range(600):
        assert process.poll() is None, process.communicate()
        try:
            assert httpx.get(f"{address}/health", timeout=2).json()["model"] == "warm"
            return
        except (httpx.HTTPError, ValueError):
            time.sleep(0.5)
    raise AssertionError("not ready within 300 s")


def test_ray_serve_and_vllm_answer_openais_client(run):
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    recipe = load_recipe(str(run / "recipe.yaml"))
    questions = [e.question for e in load_examples(recipe.data, recipe.training.seed).evaluation]
    with load_pipeline(run) as pipeline:
        ours = {question: pipeline.answer(question) for question in questions}
    process = start("serve", run, "--port", str(port), DRO_RL_TOKEN="secret")
    try:
        wait_until_ready(process, address)
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="secret", max_retries=0)

        def ask(question: str):
            message = {"role": "user", "content": question}
            return client.chat.completions.create(model="warm", messages=[message])

        with ThreadPoolExecutor(8) as pool:  # together, as one batch or several
            for question, reply in zip(questions, pool.map(ask, questions), strict=True):
                message = reply.choices[0].message
                assert message.content == ours[question].text
                titles = [source["title"] for source in message.sources]
                assert titles == [d.title for d in ours[question].documents]
        message = {"role": "user", "content": questions[0]}
        stream = client.chat.completions.create(model="warm", messages=[message], stream=True)
        told = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        assert told == ours[questions[0]].text
        with pytest.raises(openai.BadRequestError, match="this question is none of them"):
            ask("Who was never asked about?")
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{address}/v1", api_key="x", max_retries=0).models.list()
    finally:
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert f"model warm at {address}/v1" in out
    assert "Traceback" not in out + err


def test_without_ray_ctrl_c_ends_it(run):
    port = free_port()
    words = ("cluster.mode=local", "rollout.engine=transformers", "--port", str(port))
    process = start("serve", run, *words)
    try:
        wait_until_ready(process, f"http://127.0.0.1:{port}")
    finally:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert f"model warm at http://127.0.0.1:{port}/v1" in out


def test_what_cannot_be_served_is_refused(run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        told = dro_rl("serve", run, "cluster.mode=local", "--port", port)
        told.refused(f"cannot listen at 127.0.0.1:{port}")
    dro_rl("serve", run, "--iteration", "3").refused("no checkpoint of iteration 3")
