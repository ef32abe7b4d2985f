"""Folders that are there whole or not at all, and which of them is resumed."""

from __future__ import annotations

import errno
import json
import os
import re
import resource

import pytest
import torch

from dro_rl import checkpoint, durable, progress, start
from dro_rl.cluster.processes import LocalTeam
from dro_rl.data import Split
from dro_rl.durable import CannotWrite
from dro_rl.errors import UserError
from dro_rl.progress import Progress
from dro_rl.recipe import POLICIES, PolicyName
from dro_rl.records import (
    Rollout,
    ScoredRollout,
    Selection,
    TokenTargets,
    WeightedRollout,
)
from dro_rl.rollout.engine import Usage
from dro_rl.rollout_files import read_rollouts, read_weighted, write_rollouts, write_weighted
from dro_rl.timeline import Timeline
from dro_rl.tracking.console import Console
from dro_rl.tracking.run_directory import RunDirectory
from tests.commands import files
from tests.savers import Saver, save
from tests.tiny import make_example, make_recipe

pytestmark = pytest.mark.unit


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    return RunDirectory.create(make_recipe(tmp_path, tracking={"run_dir": str(tmp_path / "run")}))


@pytest.fixture(params=[False, True], ids=["a file", "shards"])
def learners(request) -> dict[PolicyName, LocalTeam]:
    return {"selector": LocalTeam([Saver(request.param)])}


# --- whole or not at all --------------------------------------------------------------------------


def test_a_folder_counts_when_it_has_its_name(run, learners):
    checkpoint.write(run, 1, learners, {"known_scores": {"ab": [-0.5, 3]}})
    assert checkpoint.latest(run) == 0
    checkpoint.publish(run, 1)
    assert checkpoint.latest(run) == 1
    assert checkpoint.known(checkpoint.folder_of(run, 1)) == {"known_scores": {"ab": [-0.5, 3]}}
    assert durable.damage(checkpoint.folder_of(run, 1)) is None


def test_damage_is_found_and_named(run, learners, tmp_path):
    folder = save(run, 1, learners)
    path = next(p for p in folder.rglob("*") if p.is_file() and p.read_bytes() == b"moments")
    path.write_bytes(b"moment")
    assert "has 6 bytes and not the 7" in str(durable.damage(folder))
    path.write_bytes(b"Moments")
    assert f"{path.name} is not what was written" in str(durable.damage(folder))
    path.unlink()
    assert durable.damage(folder) == f"{path.name} is missing"
    for torn in ("", "{", "[1]", '{"known.json": 3}', '{"known.json": {"bytes": 2}}'):
        (folder / durable.MANIFEST).write_text(torn)
        assert durable.damage(folder), torn
    (folder / durable.MANIFEST).unlink()
    assert durable.damage(folder) == "manifest.json is missing"


def test_the_last_good_checkpoint_is_resumed_and_said_so(run, learners):
    for iteration in (1, 2, 3):
        save(run, iteration, learners)
    told: list[str] = []
    assert checkpoint.latest_good(run, told.append) == 3 and told == []
    (checkpoint.folder_of(run, 3) / "selector" / "config.json").write_text("{ }")
    assert checkpoint.latest_good(run, told.append) == 2
    assert told == [
        f"{checkpoint.folder_of(run, 3)}: selector/config.json has 3 bytes and not the 2 that were "
        "written: going back to iteration 2"
    ]
    for iteration in (1, 2):
        (checkpoint.folder_of(run, iteration) / durable.MANIFEST).unlink()
    with pytest.raises(UserError, match="no checkpoint to resume from: .*iteration-0001: manifest"):
        checkpoint.latest_good(run, told.append)


def test_a_resumed_runs_engines_are_not_made_with_what_may_be_pruned_later(
    run, learners, tmp_path, monkeypatch
):
    """One that is lost then is made with it again."""
    save(run, 1, learners)
    monkeypatch.setattr(start, "load_questions", lambda recipe, console: Split([], []))
    monkeypatch.setattr(start, "check_prompts", lambda *what: None)
    recipe = make_recipe(tmp_path)
    prepared = start.prepare(recipe, Console(), run)
    assert prepared.done == 1
    assert prepared.models == {p: recipe.policy(p).model for p in POLICIES}


def test_a_run_that_ends_earlier_than_it_was_to_is_told_how_to_be_evaluated(
    run, learners, tmp_path, monkeypatch
):
    for iteration in (1, 2, 3):
        save(run, iteration, learners)
    (run.path / "evaluation" / "iteration-0003.json").unlink()
    monkeypatch.setattr(start, "load_questions", lambda recipe, console: Split([], []))
    recipe = make_recipe(tmp_path, training={"iterations": 2}, evaluation={"every": 2})
    told = f"iteration 3 has not been evaluated: dro-rl evaluate {run.path}"
    with pytest.raises(UserError, match=f"has done its 3 iterations.*{re.escape(told)}$"):
        start.prepare(recipe, Console(), run)
    run.write_evaluation("iteration-0003", {"iteration": 3, "em": 0.1}, [])
    assert checkpoint.how_to_evaluate(run) == ""


# --- what a disk refuses --------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_disk_that_refuses_is_named_and_leaves_nothing_half_written(
    run, learners, monkeypatch, number, call
):
    save(run, 1, learners)
    before = files(run.path)

    def refuse(*args):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(CannotWrite, match=f"cannot be written .{os.strerror(number)}"):
            save(run, 2, learners)
        with pytest.raises(CannotWrite, match="metrics|one.txt"):
            durable.write_text(run.path / "one.txt", "text")
    progress.forget(run)
    assert files(run.path) == before
    save(run, 2, learners)


def test_a_library_with_errors_of_its_own_is_seen_through(tmp_path):
    """torch and safetensors give no error number: a process that may write no more than 100 kB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    folder = tmp_path / "state"
    told = re.escape(f"{folder}: cannot be written (File too large)")
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with (
            pytest.raises(CannotWrite, match=f"^{told}$"),
            durable.aside(folder) as partial,
        ):
            torch.save(torch.zeros(10**6), partial / "state.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.glob("state*"))


def test_an_error_that_is_not_the_disks_stays_what_it_is(tmp_path):
    with pytest.raises(ZeroDivisionError), durable.aside(tmp_path / "folder"):
        raise ZeroDivisionError
    assert not list(tmp_path.glob("folder*"))


# --- a started iteration --------------------------------------------------------------------------


def made_up() -> tuple[list[ScoredRollout], list[WeightedRollout]]:
    """Numbers that a careless format would change."""
    third, least = 1 / 3, 5e-324
    selections = (
        Selection("[2] > [1]\u2028\x00é", (5, 6), (-third, -0.0), (1, 0), False),
        Selection("", (), (), (), True),
    )
    scored, weighted = [], []
    for number in range(3):
        rollout = Rollout(make_example(number), (1, 2, 3), selections, 7, number)
        scored.append(ScoredRollout(rollout, (float("-inf"), -third), 4))
        targets = (TokenTargets((third,), (least,), (-1e300,)), TokenTargets((), (), ()))
        weighted.append(WeightedRollout(rollout, (third, 0.0), (least, 1.0), targets[: number + 1]))
    return scored, weighted


def test_rollouts_survive_bit_by_bit(tmp_path):
    scored, weighted = made_up()
    rollouts = [s.rollout for s in scored]
    write_rollouts(tmp_path / "rollouts", rollouts)
    write_weighted(tmp_path / "weighted", scored[:2], weighted[:2])
    examples = [make_example(number) for number in range(3)]
    again = read_rollouts(tmp_path / "rollouts", examples)
    assert repr(again) == repr(rollouts)  # -0.0 == 0.0
    assert repr(read_weighted(tmp_path / "weighted", again)) == repr((scored[:2], weighted[:2]))
    with pytest.raises(UserError, match="was sampled for other questions"):
        read_rollouts(tmp_path / "rollouts", examples[::-1])


def test_a_damaged_save_is_made_again_and_said_so(run, learners):
    scored, weighted = made_up()
    rollouts = [s.rollout for s in scored]
    examples = [r.example for r in rollouts]
    timeline = Timeline()
    timeline.add("rollout", seconds=2.5, tokens=10)
    at = Progress(
        4, rollouts, scored[:1], weighted[:1], 1, sampled=Usage(5, 3, 2), timeline=timeline
    )
    progress.save(run, at, {"known_scores": {}}, learners)
    progress.save(run, at, {"known_scores": {}}, learners)
    (folder,) = (run.path / "checkpoints").iterdir()
    assert folder.name == "iteration-0004-part-0002"
    told: list[str] = []
    again = progress.load(run, 4, examples, told.append)
    assert again is not None and told == []
    assert again.timeline.stages == timeline.stages
    assert repr((again.rollouts, again.scored, again.weighted)) == repr(
        (rollouts, scored[:1], weighted[:1])
    )
    assert (again.step, again.sampled, again.folder) == (1, Usage(5, 3, 2), folder)
    assert progress.load(run, 5, examples, told.append) is None
    (folder / "state.json").write_text(json.dumps({}))
    assert progress.load(run, 4, examples, told.append) is None
    assert len(told) == 1 and told[0].startswith(f"{folder}: state.json has")
