"""The graded checks of docs/first_steps.md, as they are written there; the fifth is the demo, which
tests/e2e/test_train.py runs. The fourth learns less here, to be short."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.commands import ROOT, Result, dro_rl, evaluation, metrics
from tests.local_runs import TINY

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

DOCS = (ROOT / "docs" / "first_steps.md").read_text(encoding="utf-8")
CHECKS = {
    int(number): command
    for command, number in re.findall(r"^\.venv/bin/dro-rl (.+?) +# (\d)", DOCS, re.M)
}


def run(number: int, *more: str) -> Result:
    return dro_rl(*shlex.split(CHECKS[number]), *more).succeeded()


def test_there_are_five():
    assert [*CHECKS] == [1, 2, 3, 4, 5]
    assert CHECKS[5] == "train demo.yaml"


def test_first_the_machine():
    assert "ready: dro-rl train demo.yaml" in run(1).out


def test_second_the_recipe():
    assert "Memory a process at most [GiB]" in run(2).out


def test_third_a_reward_in_the_foreground():
    told = run(3).out
    assert "[1]" in told and "f1" in told.lower()


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Result]:
    place = tmp_path_factory.mktemp("first") / "run"
    short = (*TINY, "training.iterations=2", f"tracking.run_dir={place}")
    return place, run(4, *short)


def test_fourth_a_training_in_one_process(trained):
    place, told = trained
    assert "warm start -> now" in told.out and f"run directory: {place}" in told.out
    assert evaluation(place, 2)["questions"] == 8
    assert (place / "report.html").is_file()


def test_what_it_logged_is_in_tensorboard_too(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    place, _ = trained
    events = EventAccumulator(str(place / "tensorboard")).Reload()
    rows = metrics(place)
    wanted = {r["step"]: r["selector/loss"] for r in rows if "step" in r}
    shown = {e.step: e.value for e in events.Scalars("selector/loss")}
    assert shown == pytest.approx(wanted, rel=1e-6)
    em = [evaluation(place, i)["em"] for i in (0, 1, 2)]
    assert [e.value for e in events.Scalars("evaluation/em")] == pytest.approx(em, rel=1e-6)


def test_it_can_be_watched_after_its_end(trained):
    place, _ = trained
    told = dro_rl("watch", place).succeeded().out
    assert "finished after iteration 2" in told and "\x1b" not in told
    assert re.search(r"now +'.*' from ", told)
