"""The run directory: what is on disk."""

import json
import math
import os

import pyarrow.parquet as pq
import pytest
import yaml

from dro_rl.errors import UserError
from dro_rl.recipe import Recipe
from dro_rl.recipe_file import load_recipe
from dro_rl.records import Example, Rollout, ScoredRollout, Selection, WeightedRollout
from dro_rl.tracking.run_directory import RunDirectory, write_text

pytestmark = pytest.mark.unit


def recipe_at(place) -> Recipe:
    return Recipe.model_validate(
        {
            "data": {"kind": "facts"},
            "retrieval": {"kind": "given", "candidates": 8},
            "selector": {"model": "a/b"},
            "generator": {"model": "a/b"},
            "tracking": {"run_dir": str(place)},
        }
    )


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    return RunDirectory.create(recipe_at(tmp_path / "runs" / "one"))


def files_below(folder) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


# --- making one ---------------------------------------------------------------------------------


def test_a_new_run_holds_its_resolved_recipe_and_the_versions_that_ran_it(run):
    text = (run.path / "recipe.yaml").read_text()
    recipe = recipe_at(run.path)
    assert yaml.safe_load(text) == recipe.resolved()
    assert load_recipe(str(run.path / "recipe.yaml")) == recipe
    assert "# torch " in text and "# python 3." in text


def test_checking_a_free_place_leaves_no_trace(tmp_path):
    RunDirectory.check(recipe_at(tmp_path / "a" / "b" / "c"))
    assert files_below(tmp_path) == []


def test_checking_an_empty_folder_leaves_it(tmp_path):
    (tmp_path / "here").mkdir()
    RunDirectory.check(recipe_at(tmp_path / "here"))
    assert files_below(tmp_path) == ["here"]


def test_a_place_that_holds_a_run_is_refused(run):
    before = files_below(run.path)
    with pytest.raises(UserError, match=f"{run.path}: holds a run already.*--resume {run.path}"):
        RunDirectory.check(recipe_at(run.path))
    assert files_below(run.path) == before


@pytest.mark.parametrize(
    "place", ["file", "file/run", "file/deep/run", "x" * 300, "ok/" + "x" * 300]
)
def test_a_place_that_cannot_be_written_is_refused_without_a_trace(tmp_path, place):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written .*tracking.run_dir="):
        RunDirectory.check(recipe_at(tmp_path / place))
    assert files_below(tmp_path) == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_write_permission_is_refused(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(UserError, match="cannot be written"):
        RunDirectory.check(recipe_at(tmp_path / "locked"))


def test_only_a_run_can_be_opened(run, tmp_path):
    assert RunDirectory.open(run.path).path == run.path
    (tmp_path / "recipe.yaml").touch()  # somebody's own recipe does not make a run of a folder
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "nowhere", tmp_path / "empty", tmp_path):
        with pytest.raises(UserError, match="not a run directory"):
            RunDirectory.open(place)


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "note.txt"
    write_text(path, "first")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "second, \ud800 which UTF-8 cannot hold")
    assert path.read_text() == "first"
    assert files_below(tmp_path) == ["note.txt"]


def test_written_files_can_be_read_by_others(tmp_path):
    write_text(tmp_path / "note.txt", "x")
    assert (tmp_path / "note.txt").stat().st_mode & 0o777 == 0o644


# --- evaluations --------------------------------------------------------------------------------


def test_evaluations_come_back_in_order_the_warm_start_first(run):
    for iteration in (10, 2, 0):
        run.write_evaluation(f"iteration-{iteration:04d}", {"iteration": iteration, "em": 0.5}, [])
    (run.path / "evaluation" / "other-iteration-0002.json").write_text("{}")
    assert [e["iteration"] for e in run.evaluations()] == [0, 2, 10]


def test_an_evaluation_that_knows_no_bound_says_null(run):
    run.write_evaluation("iteration-0000", {"iteration": 0, "bound": -math.inf, "em": 0.25}, [])
    text = (run.path / "evaluation" / "iteration-0000.json").read_text()
    assert json.loads(text) == {"iteration": 0, "bound": None, "em": 0.25}
    assert "Infinity" not in text


def test_evaluated_questions_come_back_as_they_were(run):
    rows = [
        {"question": "東京?\u2028second line", "answer": "a\nb\r\n\x85c"},
        {"question": "[b] {c}", "answer": ""},
    ]
    run.write_evaluation("iteration-0001", {"iteration": 1}, rows)
    assert list(run.evaluated_questions(1)) == rows


# --- metrics and rollouts -----------------------------------------------------------------------


def metrics(run) -> list[dict]:
    return [json.loads(x) for x in (run.path / "metrics.jsonl").read_text().splitlines()]


def test_metrics_are_json_lines_without_numbers_that_json_lacks(run):
    run.append_metrics({"iteration": 1, "loss": 0.5, "best": -math.inf, "gap": math.nan})
    run.append_metrics({"iteration": 2, "loss": 1})
    assert metrics(run) == [
        {"iteration": 1, "loss": 0.5, "best": None, "gap": None},
        {"iteration": 2, "loss": 1},
    ]


def test_resuming_forgets_what_came_after_the_checkpoint(run):
    for iteration in (1, 2, 3):
        run.append_metrics({"iteration": iteration})
        run.append_metrics({"iteration": iteration, "step": 1})
    for iteration in (0, 1, 2, 3):
        run.write_evaluation(
            f"iteration-{iteration:04d}", {"iteration": iteration}, [{"question": "q"}]
        )
        for name in ("", "-questions"):
            (run.path / "rollouts" / f"iteration-{iteration:04d}{name}.parquet").touch()
        folder = run.path / "checkpoints" / f"iteration-{iteration:04d}" / "selector"
        folder.mkdir(parents=True)
    (run.path / "checkpoints" / "iteration-0003.partial").mkdir()
    for place in ("report.html", "evaluation/questions.parquet"):
        (run.path / f"{place}.abc.partial").touch()
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 1, "st')  # the process was killed here
    run.drop_after(2)
    assert [m["iteration"] for m in metrics(run)] == [1, 1, 2, 2]
    assert [e["iteration"] for e in run.evaluations()] == [0, 1, 2]
    for folder, suffix in (("rollouts", ".parquet"), ("checkpoints", ""), ("evaluation", ".jsonl")):
        kept = {p.name for p in (run.path / folder).glob(f"iteration-????{suffix}")}
        assert kept == {f"iteration-{i:04d}{suffix}" for i in (0, 1, 2)}, folder
    assert not list(run.path.rglob("*.partial"))
    assert not list(run.path.rglob("iteration-0003*"))
    run.append_metrics({"iteration": 3})
    assert [m["iteration"] for m in metrics(run)][-1] == 3


def test_resuming_a_run_that_has_written_nothing_yet(run):
    run.drop_after(0)
    assert run.evaluations() == []


def test_rollouts_have_a_row_a_selection(run):
    example = Example("q1", "Where?", ("Lyon",))
    good = Selection("[2] > [1]", (5, 6), (-0.5, -0.25), (1, 0), False)
    bad = Selection("none", (7,), (-2.0,), (), True)
    rollout = Rollout(example, (1, 2), (good, bad), version=3)
    run.write_rollouts(
        4,
        [ScoredRollout(rollout, (-1.5, -math.inf))],
        [WeightedRollout(rollout, (0.5, -0.5), (1.0, 0.0))],
    )
    assert files_below(run.path / "rollouts") == [
        "iteration-0004-questions.parquet",
        "iteration-0004.parquet",
    ]
    rows = pq.read_table(run.path / "rollouts" / "iteration-0004.parquet").to_pylist()
    assert rows[0] == {
        "iteration": 4,
        "version": 3,
        "example": "q1",
        "question": "Where?",
        "sample": 0,
        "selection": "[2] > [1]",
        "documents": [1, 0],
        "malformed": False,
        "logq": -0.75,
        "log_reward": -1.5,
        "selector_weight": 0.5,
        "generator_weight": 1.0,
    }
    assert (rows[1]["sample"], rows[1]["documents"], rows[1]["malformed"]) == (1, [], True)
    assert rows[1]["log_reward"] == -math.inf
