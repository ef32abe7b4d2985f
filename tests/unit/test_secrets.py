"""Tokens of the environment get into no run directory, report, log or message."""

from __future__ import annotations

import base64
import gzip
import json
import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import uvicorn
import yaml

from dro_rl import cli, remote
from dro_rl.listening import listen
from dro_rl.reward import load_reward
from dro_rl.reward.server import make_app
from tests.servers import serving
from tests.tiny import CITIES, PEOPLE, make_recipe

pytestmark = pytest.mark.unit

VARIABLES = ("DRO_RL_TOKEN", "HF_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY", "AWS_SECRET")
SECRETS = {name: f"planted-{i}-0123456789abcdef" for i, name in enumerate(VARIABLES)}


@pytest.fixture(autouse=True)
def planted(monkeypatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    wait = time.sleep
    monkeypatch.setattr(remote.time, "sleep", lambda s: wait(s / 100))


@pytest.fixture
def reward() -> Iterator[str]:
    """The address of a reward server that asks for the token."""
    listening = listen("127.0.0.1", 0)
    app = make_app(load_reward("rewards/f1.py"), SECRETS["DRO_RL_TOKEN"])
    server = uvicorn.Server(uvicorn.Config(app, log_level="debug"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}/score"
    server.should_exit = True
    thread.join(10)


@pytest.fixture
def recipe(tmp_path, reward) -> Path:
    """A run of one iteration that takes seconds; its reward is the server's."""
    rows = [
        {
            "id": f"q{i}",
            "question": f"Where the {person} hometown",
            "answers": [CITIES[i]],
            "documents": [
                {"title": p, "text": c, "is_gold": p == person}
                for p, c in zip(PEOPLE, CITIES, strict=True)
            ],
        }
        for i, person in enumerate(PEOPLE)
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = make_recipe(
        tmp_path / "models",
        data={"path": str(tmp_path / "data.jsonl"), "evaluation_questions": 2},
        training={"iterations": 1},
        tracking={"run_dir": str(tmp_path / "run")},
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**made.resolved(), "reward": reward}))
    return path


def dro_rl(monkeypatch, *words: object) -> int:
    """Run the command line here; its exit code."""
    monkeypatch.setattr(sys, "argv", ["dro-rl", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def told(folder: Path) -> str:
    """Everything that files say, with what is packed in them."""
    texts = []
    for path in folder.rglob("*"):
        if path.is_file():
            texts.append(f"{path}\n{path.read_bytes().decode(errors='replace')}")
            if path.suffix == ".parquet":
                texts.append(str(pq.read_table(path).to_pylist()))
            if path.suffix == ".html":
                blocks = re.findall(r'<script type="text/plain" id=.*?>(.*?)</script>', texts[-1])
                texts += [gzip.decompress(base64.b64decode(b)).decode() for b in blocks]
    return "\n".join(texts)


def assert_silent(text: str) -> None:
    assert [name for name, secret in SECRETS.items() if secret in text] == []


def test_a_run_an_evaluation_and_a_report_keep_them_to_themselves(
    recipe, tmp_path, monkeypatch, capfd
):
    run = tmp_path / "run"
    assert dro_rl(monkeypatch, "train", recipe) == 0
    assert dro_rl(monkeypatch, "evaluate", run) == 0
    assert dro_rl(monkeypatch, "report", run, "--output", tmp_path / "other.html") == 0
    assert dro_rl(monkeypatch, "check", recipe) == 0
    out, err = capfd.readouterr()
    assert "EM" in out and "written: " in out
    left = told(tmp_path)
    assert "checkpoints/iteration-0001" in left and "Kovac" in left and "127.0.0.1" in left
    assert_silent(left + out + err)


@pytest.mark.parametrize("status", [200, 401, 500])
def test_what_goes_wrong_keeps_them_to_itself(recipe, tmp_path, monkeypatch, capfd, status):
    def repeat(body, headers):
        return status, json.dumps({"scale": str(headers), "needs": []}).encode()

    secret = SECRETS["OPENAI_API_KEY"]
    with serving(repeat) as address:
        judge = f"{{use: rewards/utility_judge.py, url: '{address}', model: m, key: {secret}}}"
        for reward in (f"'{address}'", judge, f"http://me:{secret}@host/", f"{secret}.py"):
            assert dro_rl(monkeypatch, "train", recipe, f"reward={reward}") == 2
            assert dro_rl(monkeypatch, "reward", "serve", reward) == 2
    assert dro_rl(monkeypatch, "train", recipe, f"training.{secret}=1") == 2
    assert dro_rl(monkeypatch, "evaluate", tmp_path / secret) == 2
    assert_silent("".join(capfd.readouterr()) + told(tmp_path))
    assert not (tmp_path / "run").exists()
