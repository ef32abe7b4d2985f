"""The reward of a hosted LLM, against vLLM's own server on this machine."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from signal import SIGKILL, SIGTERM

import pytest

from dro_rl.evaluation.answers import f1
from dro_rl.prompts import ANSWER, PLAIN
from dro_rl.records import Document, Example, Outcome
from dro_rl.reward import load_reward
from dro_rl.rollout.environment import engine_environment
from dro_rl.sections.process import RolloutSection
from dro_rl.sections.reward import RewardSection
from tests.models import make_llama, make_tokenizer, token_logps

pytest.importorskip("vllm", reason="vLLM does not support this machine")
pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

TOKENIZER = make_tokenizer(chat=True)
EXAMPLE = Example(
    "q17",
    "Who keeps Lake Orsa?",
    ("Mila Brandt", "Brandt"),
    (Document("Lake Orsa", "Its keeper is Mila Brandt."), Document("Mount Keld", "Ivo Salter.")),
)
SELECTIONS = [(0,), (1, 0), ()]
START = 250.0  # seconds at most


class Hosted:
    """A server of a tiny random Llama, and the model itself."""

    def __init__(self, folder: Path) -> None:
        self.model = make_llama(folder / "model", tokenizer=TOKENIZER)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        settings = ["--model", str(folder / "model"), "--served-model-name", "tiny"]
        settings += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
        settings += ["--enforce-eager", "--max-model-len", "256", "--max-num-seqs", "8"]
        variables = engine_environment(RolloutSection(cpu_cache_gib=1), threads=1)
        del variables["VLLM_ENABLE_V1_MULTIPROCESSING"]  # the server has its engine beside it
        self.log = folder / "log"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *settings],
            stdout=self.log.open("wb"),
            stderr=subprocess.STDOUT,
            env={**os.environ, **variables, "HF_HUB_OFFLINE": "1"},
            start_new_session=True,
        )

    def wait(self) -> None:
        until = time.monotonic() + START
        while time.monotonic() < until and self._process.poll() is None:
            with suppress(urllib.error.URLError, OSError):
                urllib.request.urlopen(f"{self.url}/health", timeout=5)
                return
            time.sleep(0.5)
        raise AssertionError(f"no server: {self.log.read_text(errors='replace')[-3000:]}")

    def answer(self, documents: tuple[int, ...]) -> str:
        """What it says, asked without the reward."""
        asked = {
            "model": "tiny",
            "messages": [{"role": "user", "content": prompt(ANSWER, documents)}],
            "max_tokens": 32,
            "temperature": 0,
        }
        request = urllib.request.Request(
            f"{self.url}/v1/chat/completions",
            json.dumps(asked).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as reply:
            return json.load(reply)["choices"][0]["message"]["content"]

    def scores(self, example: Example, by: str) -> list[float]:
        settings = {"url": f"{self.url}/v1", "model": "tiny", "score_by": by}
        section = RewardSection.model_validate({"use": "rewards/remote_answer.py", **settings})
        return load_reward(section).score([Outcome(example, z) for z in SELECTIONS])

    def close(self) -> None:
        for signal, seconds in ((SIGTERM, 10), (SIGKILL, 10)):
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)


@pytest.fixture(scope="module")
def hosted(tmp_path_factory) -> Iterator[Hosted]:
    made = Hosted(tmp_path_factory.mktemp("hosted"))
    try:
        made.wait()
        yield made
    finally:
        made.close()


def prompt(template: str, documents: tuple[int, ...]) -> str:
    chosen = [EXAMPLE.candidates[i] for i in documents]
    rows = "\n".join(f"[{i}] {d.title}: {d.text}" for i, d in enumerate(chosen, 1))
    return template.format(documents=rows, question=EXAMPLE.question)


def test_its_likelihood_is_that_of_a_forward_pass(hosted):
    """By transformers, float32, of the tokens of " Mila Brandt" after the prompt."""
    wanted = []
    for documents in SELECTIONS:
        asked = TOKENIZER(prompt(PLAIN["answer"], documents)).input_ids
        whole = TOKENIZER(f"{prompt(PLAIN['answer'], documents)} Mila Brandt").input_ids
        assert whole[: len(asked)] == asked and len(whole) > len(asked)
        wanted.append(sum(token_logps(hosted.model, asked, whole[len(asked) :])))
    found = hosted.scores(EXAMPLE, "likelihood")
    assert found == pytest.approx(wanted, abs=1e-3)
    assert max(found) - min(found) > 0.1  # the documents make a difference


def test_its_answers_are_scored_as_they_are(hosted):
    answers = [hosted.answer(documents) for documents in SELECTIONS]
    assert hosted.scores(EXAMPLE, "f1") == [f1(a, EXAMPLE.answers) for a in answers]
    own = replace(EXAMPLE, answers=(answers[0],))
    found = hosted.scores(own, "f1")
    assert found[0] == 1.0 and found == [f1(a, own.answers) for a in answers]
    assert hosted.scores(own, "exact_match")[0] == 1.0
