"""Settings of two policies on one base, and what it takes."""

import pytest

from dro_rl.errors import UserError
from dro_rl.estimate.footprint import GIB, processes
from dro_rl.estimate.shape import shape_of
from dro_rl.recipe import POLICIES
from dro_rl.recipe_file import make_recipe as checked
from dro_rl.roles import process_count
from tests.shared_base import recipe_of

pytestmark = pytest.mark.unit

SETTINGS = {
    "data": {"kind": "jsonl", "path": "train.jsonl", "evaluation_questions": 2},
    "retrieval": {"kind": "given", "candidates": 10},
    "selector": {"model": "base", "dtype": "float32", "lora": {"rank": 4}, "init": "scratch"},
    "generator": {"share_base_with": "selector", "lora": {"rank": 8}, "max_length": 1024},
}


def changed(**sections) -> dict:
    settings = {name: dict(section) for name, section in SETTINGS.items()}
    for name, changes in sections.items():
        settings[name] = {**settings.get(name, {}), **changes}
    return settings


def test_what_is_of_the_base_is_the_selectors():
    recipe = checked(changed(), "r.yaml")
    assert recipe.shares_base
    generator = recipe.generator
    assert (generator.model, generator.dtype, generator.init) == ("base", "float32", "scratch")
    assert generator.lora.rank == 8 and generator.max_length == 1024
    assert checked(recipe.resolved(), "r.yaml") == recipe
    same = changed(generator={"model": "base", "dtype": None})
    assert checked(same, "r.yaml") == recipe
    assert not checked(changed(generator={"share_base_with": None, "model": "x"}), "r").shares_base


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"generator": {"lora": None}}, "set generator.lora"),
        ({"selector": {"lora": None}}, "set selector.lora"),
        ({"generator": {"model": "other"}}, "generator.model (other) is not the selector's (base)"),
        ({"generator": {"dtype": "bfloat16"}}, "generator.dtype (bfloat16) is not the selector's"),
        ({"generator": {"init": "hub/x"}}, "generator.init (hub/x) is not the selector's"),
        ({"generator": {"gradient_checkpointing": True}}, "leave it out"),
        ({"algorithm": {"kind": "trl_grpo"}}, "trl_grpo trains a model of TRL's own"),
        ({"cluster": {"reward_workers": 2}}, "leave cluster.reward_workers at 1"),
        ({"generator": {"share_base_with": "generator"}}, "generator.share_base_with"),
    ],
)
def test_what_cannot_share_a_base_is_refused(sections, told):
    with pytest.raises(UserError) as error:
        checked(changed(**sections), "r.yaml")
    assert told in str(error.value) and len(str(error.value).splitlines()) == 2


def test_the_estimate_counts_the_base_once_a_process(tmp_path):
    shared, apart = (recipe_of(tmp_path, shared=s) for s in (True, False))
    shapes = {p: shape_of(shared.policy(p)) for p in POLICIES}
    held = [f.parts["weights"] * GIB for f in processes(shared, shapes, "cpu")]
    assert len(held) == process_count(shared, learners=True) == 2
    base = shapes["selector"].parameters * 4
    assert held == pytest.approx([base + 4 * (4352 + 256)] * 2)
    others = [f.parts["weights"] * GIB for f in processes(apart, shapes, "cpu")]
    assert len(others) == process_count(apart, learners=True) == 5
    assert sum(others) > 2.5 * sum(held)
