"""Which checkpoints are kept, and which evaluations decide it."""

from __future__ import annotations

import pytest

from dro_rl import checkpoint
from dro_rl.cluster.processes import LocalTeam
from dro_rl.recipe import PolicyName
from dro_rl.tracking.run_directory import RunDirectory
from tests.savers import Saver, save
from tests.tiny import make_recipe

pytestmark = pytest.mark.unit


@pytest.fixture(params=[False, True], ids=["a file", "shards"])
def learners(request) -> dict[PolicyName, LocalTeam]:
    return {"selector": LocalTeam([Saver(request.param)])}


def kept(run: RunDirectory) -> dict[int, bool]:
    """The iterations whose policies are there, and whether their states are."""
    folders = {i: checkpoint.folder_of(run, i) for i in checkpoint.kept(run)}
    return {i: any(folder.glob("*.learner*")) for i, folder in folders.items()}


@pytest.mark.parametrize(
    ("tracking", "early_stop", "wanted"),
    [
        ({}, None, {1: False, 2: False, 3: False, 4: True, 5: True}),
        ({"keep_last": 1}, None, {5: True}),
        ({"keep_last": 3}, None, {3: True, 4: True, 5: True}),
        ({"keep_last": 2, "keep_best": "em"}, None, {2: False, 4: True, 5: True}),
        ({"keep_last": 1}, {"metric": "em", "patience": 9}, {2: False, 5: True}),
    ],
)
def test_what_is_kept(tmp_path, learners, tracking, early_stop, wanted):
    recipe = make_recipe(
        tmp_path,
        tracking={"run_dir": str(tmp_path / "run"), **tracking},
        training={"early_stop": early_stop},
    )
    run = RunDirectory.create(recipe)
    run.write_evaluation("iteration-0000", {"iteration": 0, "em": 0.0}, [])
    for iteration in range(1, 6):
        save(run, iteration, learners)
        best = {"iteration": iteration, "em": 0.9 if iteration == 2 else 0.1}
        run.write_evaluation(f"iteration-{iteration:04d}", best, [])
        checkpoint.prune(run, recipe)
    assert kept(run) == wanted
    assert checkpoint.latest_good(run, print) == 5


def test_the_best_is_kept_where_only_some_iterations_are_evaluated(tmp_path, learners):
    tracking = {"run_dir": str(tmp_path / "run"), "keep_last": 1, "keep_best": "em"}
    recipe = make_recipe(
        tmp_path, tracking=tracking, evaluation={"every": 2}, training={"iterations": 7}
    )
    run = RunDirectory.create(recipe)
    found = {0: 0.1, 2: 0.3, 4: 0.9, 6: 0.9, 7: 0.4}
    best = {1: [1], 2: [2], 3: [2, 3], 4: [4], 5: [4, 5], 6: [4, 6], 7: [4, 7]}
    for iteration in range(8):
        if recipe.evaluates(iteration):
            summary = {"iteration": iteration, "em": found[iteration]}
            run.write_evaluation(f"iteration-{iteration:04d}", summary, [])
        if iteration:
            checkpoint.write(run, iteration, learners, {})
            checkpoint.publish(run, iteration)
            checkpoint.prune(run, recipe)
            assert checkpoint.kept(run) == best[iteration]
    assert [e["iteration"] for e in run.evaluations()] == [*found]


def test_an_evaluation_that_was_asked_for_later_neither_stops_a_run_nor_loses_its_best(
    tmp_path, learners
):
    """Nor does that of an iteration which was the last before the run was given more."""
    place, early = str(tmp_path / "run"), {"metric": "em", "patience": 1}
    recipe = make_recipe(
        tmp_path,
        tracking={"run_dir": place, "keep_last": 1},
        evaluation={"every": 2},
        training={"iterations": 9, "early_stop": early},
    )
    run = RunDirectory.create(recipe)
    for iteration, em in enumerate((0.5, None, 0.6, None)):
        if em is not None:
            run.write_evaluation(
                f"iteration-{iteration:04d}", {"iteration": iteration, "em": em}, []
            )
        if iteration:
            checkpoint.write(run, iteration, learners, {})
            checkpoint.publish(run, iteration)

    def look(em: float) -> None:
        run.write_evaluation("iteration-0003", {"iteration": 3, "em": em}, [])

    assert not checkpoint.is_finished(run, recipe)
    look(0.1)
    assert not checkpoint.is_finished(run, recipe)
    assert checkpoint.is_finished(run, make_recipe(tmp_path, training={"early_stop": early}))
    look(0.9)
    checkpoint.write(run, 4, learners, {})
    checkpoint.publish(run, 4)
    checkpoint.prune(run, recipe)
    assert checkpoint.kept(run) == [2, 3, 4]  # 3 is what `export --iteration best` takes
