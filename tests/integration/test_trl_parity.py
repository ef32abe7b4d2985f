"""GRPO and RLOO give TRL's loss and gradient on the same rollouts; what differs is noticed.

`benchmarks/trl_parity.py` has more cases. Here, not in tests/unit: importing TRL takes 10 s.
"""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.trl_parity import TOLERANCE, Side, gap, ours, theirs
from benchmarks.trl_problem import Case, Problem, make_problem
from dro_rl.sections.algorithm import GrpoAlgorithm

pytestmark = pytest.mark.filterwarnings("ignore:TRL currently supports vLLM")

GRPO = {"kind": "grpo", "kl": 0.1}
CASES = {
    "grpo": Case("grpo", GRPO, off_policy=True),
    "dr_grpo": Case("dr_grpo", {**GRPO, "scale": "none"}, off_policy=True),
    "rloo": Case("rloo", {"kind": "rloo"}, off_policy=True),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module", params=CASES)
def judged(request, folder) -> tuple[Problem, Side]:
    problem = make_problem(CASES[request.param], folder)
    return problem, theirs(problem)


def test_the_case_has_what_could_differ(judged):
    problem, _ = judged
    groups = [[s.token_ids for s in r.selections] for r in problem.rollouts]
    assert all(len(set(ids)) < len(ids) for ids in groups)
    assert len({len(ids) for group in groups for ids in group}) > 3
    assert any(len(set(r)) == 1 for r in problem.rewards)
    assert any(0 < v < 1 for r in problem.rewards for v in r)
    assert 0.02 < ours(problem).clipped < 0.5


def test_loss_and_gradient_are_trls(judged):
    problem, reference = judged
    found = gap(reference, ours(problem))
    assert found.worst < TOLERANCE, found


def test_a_reward_that_differs_is_noticed(judged):
    problem, reference = judged
    rewards = [problem.rewards[0][::-1], *problem.rewards[1:]]
    assert gap(reference, ours(replace(problem, rewards=rewards))).gradient > 100 * TOLERANCE


def test_another_objective_is_noticed(judged):
    """Each setting of the algorithm that TRL has too; RLOO has the clip alone."""
    problem, reference = judged
    section = problem.recipe.algorithm
    changes = {"clip": 0.5}
    if isinstance(section, GrpoAlgorithm):
        changes |= {"kl": 0.11, "scale": "none" if section.scale == "std" else "std"}
    for change in changes.items():
        algorithm = section.model_copy(update=dict([change]))
        other = problem.recipe.model_copy(update={"algorithm": algorithm})
        found = gap(reference, ours(replace(problem, recipe=other)))
        assert found.gradient > 10 * TOLERANCE, change
