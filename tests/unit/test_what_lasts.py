"""Which settings a resumed run keeps, and which it may have other than it was begun with."""

from __future__ import annotations

import pytest

from dro_rl.errors import UserError
from dro_rl.recipe_file import load_recipe
from dro_rl.sections.lora import Lora

pytestmark = pytest.mark.unit

FUSION = "retrieval={kind: fusion, of: [{kind: bm25}, {kind: dense, model: a, batch_size: %d}]}"
DATA = ["data={kind: jsonl, path: a.jsonl}", "warmup.pretraining=none"]
LORA = [f"selector.lora.{key}" for key in Lora.model_fields]


def changed(overrides: list[str], others: list[str]) -> list[str]:
    one, two = (load_recipe("recipes/demo.yaml", o).lasting() for o in (overrides, others))
    return [k for k in one | two if k not in one or k not in two or one[k] != two[k]]


@pytest.mark.parametrize(
    "override",
    [
        "training.iterations=9",
        "training.early_stop={metric: em, patience: 2}",
        "training.checkpoint_seconds=0",
        "evaluation.every=2",
        "training.tokens_per_microbatch=100",
        "tracking={run_dir: elsewhere, resume: auto, keep_last: 3, keep_best: bound}",
        "cluster={mode: local, call_timeout: 5}",
        "rollout.workers=3",
        "selector.gradient_checkpointing=true",
        "warmup.steps=3",
    ],
)
def test_what_no_result_depends_on_may_change(override):
    assert changed([], [override]) == []


@pytest.mark.parametrize(
    ("override", "keys"),
    [
        ("training.batch_size=3", ["training.batch_size"]),
        ("selector.lora.rank=3", ["selector.lora", *LORA]),
        ("reward={use: rewards/f1.py, beta: 2}", ["reward.use", "reward.beta"]),
        ("algorithm={kind: rloo}", None),
    ],
)
def test_the_rest_lasts(override, keys):
    found = changed([], [override])
    assert found if keys is None else sorted(found) == sorted(keys)


def test_a_list_of_sections_is_looked_into():
    one, two, other = FUSION % 1, FUSION % 2, (FUSION % 1).replace("model: a", "model: b")
    assert changed([*DATA, one], [*DATA, two]) == []
    assert changed([*DATA, one], [*DATA, other]) == ["retrieval.of.1.model"]


def test_where_pylate_runs_is_no_other_experiment():
    one, two, other = (
        f"retrieval={{kind: pylate, model: {model}, batch_size: {size}, environment: {place}}}"
        for model, size, place in (("a", 1, "x"), ("a", 2, "y"), ("b", 1, "x"))
    )
    assert changed([*DATA, one], [*DATA, two]) == []
    assert changed([*DATA, one], [*DATA, other]) == ["retrieval.model"]


def test_the_best_is_kept_of_few_alone():
    with pytest.raises(UserError, match="keep_best without keep_last: all are kept: leave it out"):
        load_recipe("recipes/demo.yaml", ["tracking.keep_best=em"])
