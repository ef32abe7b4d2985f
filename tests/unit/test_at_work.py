"""Two commands on one run."""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from dro_rl import at_work
from dro_rl.at_work import NAME, Process
from dro_rl.errors import UserError

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(at_work, "_BEAT", 0.02)
    monkeypatch.setattr(at_work, "_PATIENCE", 0.3)


def leave(run: Path, holder: Process) -> Path:
    run.mkdir(exist_ok=True)
    (run / NAME).write_text(json.dumps(asdict(holder)))
    return run / NAME


def enter(run: Path) -> list[str]:
    """What is said on the way in."""
    said = list[str]()
    with at_work.at_work(run, said.append):
        assert json.loads((run / NAME).read_text())["pid"] == os.getpid()
    assert not (run / NAME).exists()
    return said


def test_a_second_command_is_refused_and_the_first_leaves_no_trace(tmp_path):
    run = tmp_path / "runs" / "a"
    with at_work.at_work(run, print):
        with pytest.raises(UserError, match=f"{run}: process {os.getpid()} on .* is at work on"):
            enter(run)
        assert (run / NAME).exists()
    assert not [*tmp_path.iterdir()]
    assert enter(run) == []


def test_what_a_run_has_stays(tmp_path):
    run = tmp_path / "run"
    with at_work.at_work(run, print):
        (run / "recipe.yaml").touch()
    assert [p.name for p in run.iterdir()] == ["recipe.yaml"]


def test_a_process_that_is_gone_holds_nothing(tmp_path):
    ended = subprocess.run(
        [
            *(sys.executable, "-c"),
            "import json; from dataclasses import asdict; from dro_rl.at_work import Process; "
            "print(json.dumps(asdict(Process.this())))",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    leave(tmp_path, Process(**json.loads(ended.stdout)))
    assert enter(tmp_path) == []


def test_another_process_of_the_same_number_holds_nothing(tmp_path):
    leave(tmp_path, replace(Process.this(), born="1"))
    assert enter(tmp_path) == []


def test_another_machine_holds_what_it_touches_and_nothing_else(tmp_path, monkeypatch):
    path = leave(tmp_path, replace(Process.this(), host="elsewhere", boot="another"))
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(at_work.time, "sleep", lambda seconds: os.utime(path))
        with pytest.raises(UserError, match="on elsewhere is at work"):
            enter(tmp_path)
    began = time.monotonic()
    (line,) = enter(tmp_path)
    assert "left by another machine" in line and time.monotonic() - began >= 0.3


def test_who_holds_a_run_touches_its_file(tmp_path):
    with at_work.at_work(tmp_path, print):
        before, until = (tmp_path / NAME).stat().st_mtime_ns, time.monotonic() + 60
        while (tmp_path / NAME).stat().st_mtime_ns == before:
            assert time.monotonic() < until
            time.sleep(0.01)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}'])
def test_a_file_that_was_not_written_to_its_end_holds_nothing(tmp_path, content):
    (tmp_path / NAME).write_text(content)
    enter(tmp_path)


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be written \(Not a dir.*tracking.run_dir="):
        enter(tmp_path / "file" / "run")


def test_what_another_has_put_there_meanwhile_stays(tmp_path):
    """Two commands that find the same file of a process that is gone."""
    path = leave(tmp_path, Process(1, "gone", "elsewhere", "0"))
    judged = path.read_text()
    path.write_text("the other's")
    at_work._clear(path, judged)
    assert path.read_text() == "the other's"
    at_work._clear(path, "the other's")
    assert not [*tmp_path.iterdir()]
