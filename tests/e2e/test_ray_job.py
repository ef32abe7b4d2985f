"""`ray job submit` of recipes as they are written, against a real head."""

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from dro_rl.recipe_file import load_recipe
from tests.commands import BIN, ROOT, checkpoint, environment, evaluation, iterations, rollouts
from tests.models import make_llama, make_tokenizer

pytest.importorskip("vllm", reason="vLLM does not support this machine")
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not Path("/proc").is_dir(), reason="ends the head through /proc"),
]

RECIPE = "recipes/dro_hotpot.yaml"


# --- a small HotpotQA in the hub's layout, and models ---------------------------------------------


def write_hub(folder: Path) -> Path:
    """Parquet files as `hotpotqa/hotpot_qa` has them: 24 questions to train on, 6 held out."""
    (folder / "distractor").mkdir(parents=True)
    for split, numbers in (("train", range(24)), ("validation", range(100, 106))):
        rows = [_question(n) for n in numbers]
        path = folder / "distractor" / f"{split}-00000-of-00001.parquet"
        pq.write_table(pa.Table.from_pylist(rows), path)
    return folder


def _question(n: int) -> dict:
    titles = [f"Lake {n}", f"Keeper {n}", *(f"Hill {n + i}" for i in range(4))]
    return {
        "id": f"q{n}",
        "question": f"In which year was the keeper of Lake {n} born?",
        "answer": str(1800 + n),
        "type": "bridge",
        "level": "easy",
        "supporting_facts": {"title": titles[:2], "sent_id": [0, 0]},
        "context": {
            "title": titles,
            "sentences": [
                [f"Lake {n} lies in Tarn.", f" Its keeper is Keeper {n}."],
                [f"Keeper {n} was born in {1800 + n}."],
                *([f"Hill {n + i} is {i} miles from Lake {n}."] for i in range(4)),
            ],
        },
    }


@pytest.fixture(scope="module")
def replacements(tmp_path_factory) -> list[str]:
    """Overrides that put local models and data in the place of the hub's."""
    folder = tmp_path_factory.mktemp("local")
    texts = [json.dumps(_question(n)) for n in range(24)]
    tokenizer = make_tokenizer(texts, vocabulary=500, chat=True)  # instruction models chat
    for seed, policy in enumerate(("selector", "generator")):
        make_llama(folder / policy, tokenizer=tokenizer, context=768, seed=seed)
    return [
        f"data.path={write_hub(folder / 'hotpot_qa')}",
        "data.evaluation_questions=6",
        "retrieval.candidates=8",
        f"retrieval.cache_dir={folder / 'cache'}",
        *(f"{policy}.model={folder / policy}" for policy in ("selector", "generator")),
        *(f"{p}.dtype=float32" for p in ("selector", "generator")),
        *(f"{p}.max_length=768" for p in ("selector", "generator")),
        "training.iterations=1",
        "training.batch_size=12",
        "training.tokens_per_microbatch=300",
        "algorithm.samples=4",
        "evaluation.samples=4",
        *(f"{p}.ranks=1" for p in ("selector", "generator")),
        "rollout.workers=1",
        "cluster.reward_workers=1",
    ]


# --- a head ---------------------------------------------------------------------------------------


class Head:
    """A Ray head of its own, with free ports and a session folder aside."""

    def __init__(self) -> None:
        # Sockets lie below it, whose paths may have 107 characters: pytest's folders are too long.
        self.session = tempfile.mkdtemp(prefix="ray-")
        self.dashboard = 0

    def start(self, folder: Path) -> None:
        """`ray start --head` in a folder; ready when it takes jobs."""
        port, self.dashboard, client, agent, grpc, exported = free_ports(6)
        self._run(
            [
                *(str(BIN / "ray"), "start", "--head", "--disable-usage-stats"),
                *(f"--port={port}", f"--ray-client-server-port={client}"),
                *("--include-dashboard=true", "--dashboard-host=127.0.0.1"),
                *(f"--dashboard-port={self.dashboard}", f"--dashboard-agent-listen-port={agent}"),
                *(f"--dashboard-agent-grpc-port={grpc}", f"--metrics-export-port={exported}"),
                *("--num-cpus=2", "--num-gpus=0", "--object-store-memory=200000000"),
                f"--temp-dir={self.session}",
            ],
            folder,
        )
        _wait_for(f"http://127.0.0.1:{self.dashboard}/api/jobs/")
        _wait_for(f"http://127.0.0.1:{agent}/api/local_raylet_healthz")  # it takes the jobs

    def submit(self, folder: Path, *words: str, variables: dict[str, str]) -> tuple[int, str]:
        """`ray job submit` from a folder, to its end: its exit code and all it printed."""
        runtime = json.dumps({"env_vars": variables})
        done = self._run(
            [str(BIN / "ray"), "job", "submit", "--runtime-env-json", runtime, *words],
            folder,
            RAY_ADDRESS=f"http://127.0.0.1:{self.dashboard}",
        )
        return done.returncode, done.stdout

    def stop(self) -> None:
        """End the processes of this head and no others: `ray stop` would end every head's."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in self._processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            deadline = time.monotonic() + 5
            while self._processes() and time.monotonic() < deadline:
                time.sleep(0.2)
        shutil.rmtree(self.session, ignore_errors=True)

    def _processes(self) -> list[int]:
        """Those whose command line or environment names this head's session folder."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                about = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
                alive = (folder / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
            except OSError:  # ended meanwhile, or another user's
                continue
            if self.session.encode() in about and alive:
                found.append(int(folder.name))
        return found

    def _run(self, words: list[str], folder: Path, **variables: str) -> subprocess.CompletedProcess:
        quiet = {"RAY_AUTH_MODE": "disabled", "DRO_RL_TEST_SESSION": self.session}
        return subprocess.run(
            words,
            cwd=folder,
            env=environment(**quiet, **variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=400,
        )


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            assert time.monotonic() < deadline, f"{url} does not answer"
            time.sleep(0.5)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]


@pytest.fixture(scope="module")
def head():
    started = Head()
    try:
        started.start(ROOT)
        yield started
    finally:
        started.stop()


@pytest.fixture
def run_dir(tmp_path) -> Path:
    return tmp_path / "run"


def assert_complete(run: Path) -> None:
    assert load_recipe(str(run / "recipe.yaml")).training.iterations == 1
    assert [row["iteration"] for row in iterations(run)] == [1]
    assert len(rollouts(run, 1)) == 24 * 4
    for policy in ("selector", "generator"):
        assert (checkpoint(run, 1) / policy / "model.safetensors").is_file()
    for i in (0, 1):
        assert evaluation(run, i)["questions"] == 6


# --- the jobs -------------------------------------------------------------------------------------


def test_a_recipe_is_submitted_as_it_is_written(head, replacements, run_dir):
    """`ray job submit recipes/dro_hotpot.yaml`, in the folder where the head was started."""
    overrides = [*replacements, f"tracking.run_dir={run_dir}"]
    variables = {"DRO_RL_OVERRIDES": shlex.join(overrides)}
    code, out = head.submit(ROOT, RECIPE, variables=variables)
    assert code == 0 and "succeeded" in out, out
    assert "engine vllm" in out and str(run_dir) in out
    assert_complete(run_dir)


def test_a_working_directory_is_submitted_from_anywhere(head, replacements, run_dir, tmp_path):
    """`ray job submit --working-dir COPY -- recipes/mine.yaml`, of a recipe that extends."""
    copy = tmp_path / "copy"
    shutil.copytree(ROOT / "recipes", copy / "recipes")
    shutil.copytree(ROOT / "rewards", copy / "rewards", ignore=shutil.ignore_patterns("__py*"))
    mine = copy / "recipes" / "mine.yaml"
    first_line = (ROOT / RECIPE).read_text().partition("\n")[0]
    settings = {
        "extends": "dro_hotpot.yaml",
        "rollout": {"engine": "transformers"},
        "tracking": {"run_dir": str(run_dir)},
    }
    for override in replacements:
        key, _, value = override.partition("=")
        section, name = key.split(".")
        settings.setdefault(section, {})[name] = yaml.safe_load(value)
    mine.write_text(f"{first_line}\n{yaml.safe_dump(settings)}")
    mine.chmod(0o755)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    code, out = head.submit(
        elsewhere, "--working-dir", str(copy), "--", "recipes/mine.yaml", variables={}
    )
    assert code == 0 and "succeeded" in out, out
    assert "engine transformers" in out
    assert_complete(run_dir)
    assert list(elsewhere.iterdir()) == []


def test_a_users_error_fails_the_job_with_its_message(head, run_dir):
    variables = {"DRO_RL_OVERRIDES": shlex.join(["training.iteration=1"])}
    code, out = head.submit(ROOT, RECIPE, variables=variables)
    assert code != 0 and "did you mean iterations?" in out
    assert "exit code 2" in out and "Traceback" not in out
    assert not run_dir.exists()
