"""Learners of two and three ranks, each with a part of every weight (FSDP2 over gloo): the same
gradient, figures and weights as one process, and one state for any number of ranks."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.ranks import LIVES, RESUMED, after, live, make_batch, make_learner, on_ranks

pytestmark = pytest.mark.integration
SIZES = (2, 3)
BOTH = pytest.mark.parametrize("size", SIZES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def told(folder) -> dict[int, list[dict[Any, Any]]]:
    """What every rank says, by the number of ranks."""
    alone = {}
    for life in LIVES:
        learner = make_learner(life, folder)
        batch = make_batch(learner)
        (folder / f"{life}.batch").write_bytes(pickle.dumps(batch))
        alone[life] = live(learner, batch, folder / "1" / life)
    return {
        1: [alone],
        2: on_ranks(2, folder, folder / "2", None),
        3: on_ranks(3, folder, folder / "3", folder / "2"),
    }


def apart(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """Distance over length, of all together."""
    assert found.keys() == wanted.keys()
    error = sum((found[n].float() - w.float()).square().sum() for n, w in wanted.items())
    return float(error / sum(w.float().square().sum() for w in wanted.values())) ** 0.5


@pytest.mark.parametrize("life", [life for life in LIVES if life != "bfloat16"])
@BOTH
def test_several_ranks_learn_as_one(told, life, size):
    wanted = told[1][0][life]
    for found in (rank[life] for rank in told[size]):
        assert apart(found["gradient"], wanted["gradient"]) < 1e-5
        # AdamW's first step divides each gradient by itself, those that are rounding alone too.
        for step, close in (("first", 1e-5), ("second", 1e-4)):
            assert found[step].loss == pytest.approx(wanted[step].loss, rel=close, abs=close)
            assert found[step].grad_norm == pytest.approx(wanted[step].grad_norm, rel=10 * close)
            assert found[step].logp == pytest.approx(wanted[step].logp, rel=close)
        assert found["probe"] == pytest.approx(wanted["probe"], abs=1e-3)
    weights = told[size][0][life]["weights"]
    assert apart(weights, wanted["weights"]) < 1e-4
    assert all(not rank[life]["weights"] for rank in told[size][1:])


@pytest.mark.parametrize("what", ["score", "values", "scored"])
@BOTH
def test_every_rank_has_all_scores_in_order(told, what, size):
    lives = [life for life in LIVES if what in told[1][0][life] and life != "bfloat16"]
    assert lives
    for life in lives:
        wanted = told[1][0][life][what]
        for found in (rank[life][what] for rank in told[size]):
            assert len(found) == len(wanted)
            for one, want in zip(found, wanted, strict=True):
                if what == "scored":
                    assert one.rollout == want.rollout
                    one, want = one.log_rewards, want.log_rewards
                flat = [torch.tensor(row).flatten() for row in one]
                torch.testing.assert_close(
                    flat, [torch.tensor(row).flatten() for row in want], atol=1e-5, rtol=0
                )


@BOTH
def test_bfloat16_is_as_near_as_bfloat16_is(told, size):
    """Each rank computes in it and the gradient is summed in float32; one process uses autocast."""
    found, wanted = told[size][0]["bfloat16"], told[1][0]["bfloat16"]
    exact = told[1][0]["selector"]
    rounding = apart(wanted["gradient"], exact["gradient"])
    assert apart(found["gradient"], exact["gradient"]) < 2 * rounding
    assert {w.dtype for w in found["weights"].values()} == {torch.bfloat16}


@pytest.mark.parametrize("life", RESUMED)
@BOTH
def test_a_state_continues_bit_for_bit_on_as_many_ranks(told, life, size):
    for rank in told[size]:
        straight, resumed = rank[life], rank[life, str(size)]
        assert resumed["second"] == straight["second"]
        assert resumed["probe"] == straight["probe"]
        assert resumed["weights"].keys() == straight["weights"].keys()
        for name, weight in straight["weights"].items():
            assert torch.equal(resumed["weights"][name], weight)


@pytest.mark.parametrize("life", RESUMED)
def test_a_state_of_two_ranks_continues_on_one_and_on_three(told, folder, life):
    wanted = told[2][0][life]
    learner = make_learner(life, folder)
    learner.restore(folder / "2" / life / learner.policy)
    batch = pickle.loads((folder / f"{life}.batch").read_bytes())
    for found in (after(learner, batch), told[3][0][life, "2"]):
        assert found["second"].loss == pytest.approx(wanted["second"].loss, rel=1e-4, abs=1e-4)
        assert found["second"].learning_rate == wanted["second"].learning_rate
        assert apart(found["weights"], wanted["weights"]) < 1e-4


def test_a_state_of_two_ranks_lies_in_two_files(folder, told):
    names = sorted(p.name for p in (folder / "2" / "lora" / "selector.learner").iterdir())
    assert names == [f"rank-{i:04d}-of-0002.safetensors" for i in range(2)]
