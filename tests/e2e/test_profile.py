"""`dro-rl profile` on a tiny recipe: tables, traces, and what it refuses."""

import gzip
import json
import re
from pathlib import Path

import pytest

from tests.commands import Result, dro_rl, files

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

TINY = (
    "rollout.engine=transformers",
    "data.train_questions=16",
    "data.evaluation_questions=4",
    "training.batch_size=4",
    "training.tokens_per_microbatch=600",
    "algorithm.samples=2",
)


def profile(run: Path, *words: str) -> Result:
    return dro_rl("profile", "recipes/demo.yaml", *TINY, f"tracking.run_dir={run}", *words)


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> tuple[Path, Result]:
    run = tmp_path_factory.mktemp("profile") / "run"
    return run, profile(run, "--steps", "2", "reward=rewards/f1.py").succeeded()


def test_the_top_of_every_stage_is_shown_longest_first(told):
    _, result = told
    assert "\x1b" not in result.out
    title = re.compile(r"^(\w+): ([\d.]+) of ([\d.]+) s in operators on the CPU$", re.M)
    blocks = title.split(result.out)
    stages = {blocks[i]: blocks[i + 1 : i + 4] for i in range(1, len(blocks), 4)}
    assert list(stages) == ["rollout", "answer", "reward", "learn"]
    for stage, (inside, whole, text) in stages.items():
        assert float(inside) <= float(whole) + 0.01
        rows = re.findall(r"^ +(\S.*?) {2,}([\d.]+) +([\d.]+) % +([\d,]+) *$", text, re.M)
        seconds = [float(s) for _, s, _, _ in rows]
        if stage == "reward":
            assert rows == []  # F1 is Python alone
            continue
        assert len(rows) == 12 and seconds == sorted(seconds, reverse=True)
        assert 50 < sum(float(share) for _, _, share, _ in rows) <= 100.5
        assert "aten::mm" in [name for name, *_ in rows]


def test_each_stage_has_a_trace_of_what_both_policies_ran(told):
    run, result = told
    folder = run.with_name("run-profile")
    assert f"traces, for chrome://tracing or ui.perfetto.dev: {folder}" in result.out
    assert not run.exists()
    assert set(files(folder)) == {f"{s}.json.gz" for s in ("rollout", "answer", "reward", "learn")}
    events = json.loads(gzip.decompress((folder / "learn.json.gz").read_bytes()))["traceEvents"]
    updates = [e for e in events if e.get("name", "").startswith("Optimizer.step#AdamW")]
    assert len(updates) == 2 * 2  # steps of each policy; the unprofiled ones are not there


def test_traces_that_are_there_are_kept(told):
    run, _ = told
    folder = run.with_name("run-profile")
    before = files(folder)
    profile(run).refused(str(folder), "remove it, or give another --output DIR")
    assert files(folder) == before


def test_bad_input_is_refused_and_leaves_nothing(tmp_path):
    run = tmp_path / "run"
    profile(run, "training.batchsize=4").refused("training.batchsize", "batch_size?")
    profile(run, "algorithm={kind: trl_grpo, train: [selector]}").refused("driven by TRL")
    profile(run, "data.train_questions=0").refused("data.train_questions")
    assert list(tmp_path.iterdir()) == []
