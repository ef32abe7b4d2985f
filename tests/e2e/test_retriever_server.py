"""`dro-rl retriever serve`, and `retrieval.kind: http` that asks it."""

from __future__ import annotations

import json
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from dro_rl.errors import UserError
from dro_rl.records import Document, Example
from dro_rl.retrieval import add_candidates
from dro_rl.sections.retrieval import Bm25Retrieval, HttpRetrieval
from scripts.minilm_colbert import make_checkpoint
from tests.commands import dro_rl, start
from tests.environments import needs_environment

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

ANIMALS = ("Cats sleep and purr.", "Dogs bark at postmen.", "Fish swim in rivers.", "Birds fly.")


def write_recipe(folder: Path, **retrieval) -> Path:
    corpus = folder / "corpus.jsonl"
    rows = [{"title": text.split()[0], "text": text} for text in ANIMALS]
    corpus.write_text("\n".join(map(json.dumps, rows)))
    searched = {"kind": "bm25", "corpus_path": str(corpus), "cache_dir": str(folder / "cache")}
    recipe = folder / "recipe.yaml"
    settings = {
        "data": {"kind": "jsonl", "path": "unused.jsonl"},
        "retrieval": retrieval or searched,
        "selector": {"model": "unused"},
        "generator": {"model": "unused"},
    }
    recipe.write_text(yaml.safe_dump(settings))
    return recipe


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def wait_until_ready(process, address: str) -> dict:
    for _ in range(240):
        assert process.poll() is None, process.communicate()
        try:
            return httpx.get(f"{address}/health", timeout=2).raise_for_status().json()
        except httpx.HTTPError:
            time.sleep(0.5)
    raise AssertionError("not ready within 120 s")


def answer_to_half_a_request(port: int) -> str:
    """The status line that one gets who promises a body and sends the half of it."""
    head = "POST /search HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer secret\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=120) as half:
        half.sendall(f'{head}Content-Length: 99\r\n\r\n{{"questions": ['.encode())
        return half.recv(4096).decode().splitlines()[0]


def test_a_served_retriever_finds_what_it_finds_here(tmp_path, monkeypatch):
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    recipe = write_recipe(tmp_path)
    words = ("retriever", "serve", recipe, "--port", str(port), "--timeout", "8")
    process = start(*words, DRO_RL_TOKEN="secret")
    try:
        health = wait_until_ready(process, address)
        assert (health["kind"], health["passages"]) == ("bm25", 4)

        # The same candidates as without a server, by several who ask at once.
        examples = [
            Example(f"q{i}", question, ("a",), (Document("Dogs", ANIMALS[1], is_gold=True),))
            for i, question in enumerate(["Do dogs bark?", "Who swims?", "river"] * 20)
        ]
        served = HttpRetrieval.model_validate(
            {"kind": "http", "url": f"{address}/search", "candidates": 3, "batch_size": 7}
        )
        local = Bm25Retrieval.model_validate(
            {**yaml.safe_load(recipe.read_text())["retrieval"], "candidates": 3}
        )

        def ask(_: int) -> list[Example]:
            return add_candidates(examples, [], served, seed=0, required=1)

        with pytest.raises(UserError, match="answered 401: .*DRO_RL_TOKEN"):
            ask(0)
        monkeypatch.setenv("DRO_RL_TOKEN", "secret")
        here = add_candidates(examples, [], local, seed=0, required=1)
        with ThreadPoolExecutor(9) as pool:
            half = pool.submit(answer_to_half_a_request, port)
            assert all(there == here for there in pool.map(ask, range(8)))
            assert " 504 " in half.result()  # it waits no longer than --timeout

        for bad in ({"questions": []}, {"questions": "Dogs?"}, {"questions": ["a"], "k": 0}, []):
            headers = {"Authorization": "Bearer secret"}
            assert httpx.post(f"{address}/search", json=bad, headers=headers).status_code == 422
        metrics = httpx.get(f"{address}/metrics").text
        assert 'retriever_requests_total{status="200"} 72.0' in metrics
        assert 'retriever_requests_total{status="401"} 1.0' in metrics
        assert "retriever_questions_total 480.0" in metrics

        replicas = [p for p in psutil.Process(process.pid).children(recursive=True) if _serves(p)]
        assert len(replicas) == 1
        replicas[0].kill()
        assert ask(0) == here  # Ray Serve has made another
    finally:
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert f"bm25 over 4 passages: POST {address}/search" in out
    assert "Traceback" not in out + err


@needs_environment("pylate")
def test_a_retriever_of_another_environment_is_served(tmp_path):
    """A process of the service starts another of its own; paths are of the working folder."""
    make_checkpoint(tmp_path / "model")
    late = {"kind": "pylate", "model": "model", "max_length": 32}
    recipe = write_recipe(
        tmp_path, kind="fusion", of=[{"kind": "bm25"}, late], corpus_path="corpus.jsonl"
    )
    port = free_port()
    process = start("retriever", "serve", recipe, "--port", str(port), cwd=tmp_path)
    try:
        wait_until_ready(process, f"http://127.0.0.1:{port}")
        body = {"questions": ["Who swims in a river?", "Do dogs bark?"], "k": 2}
        reply = httpx.post(f"http://127.0.0.1:{port}/search", json=body, timeout=60)
        best = [hits[0]["title"] for hits in reply.raise_for_status().json()["results"]]
        assert best == ["Fish", "Dogs"]
    finally:
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "Traceback" not in out + err


def _serves(process: psutil.Process) -> bool:
    return any("ServeReplica" in word for word in process.cmdline())


def test_what_cannot_be_served_is_refused(tmp_path):
    given = write_recipe(tmp_path, kind="given")
    dro_rl("retriever", "serve", given).refused("kind: given searches no corpus")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        refused = dro_rl("retriever", "serve", write_recipe(tmp_path), "--port", port)
        refused.refused(f"cannot listen at 127.0.0.1:{port}", "--port")
    gone = "retrieval.corpus_path=/nowhere/corpus.tsv"
    dro_rl("retriever", "serve", write_recipe(tmp_path), gone).refused("cannot read /nowhere")
