"""`dro-rl warmup` in miniature: the demo's policies, and scratch policies on a corpus."""

import json

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.commands import ROOT, dro_rl, evaluation

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

POLICIES = ("selector", "generator")


def test_the_demos_policies_in_miniature(tmp_path):
    result = dro_rl(
        "warmup",
        "recipes/demo.yaml",
        "--output",
        tmp_path,
        "warmup.pretraining_steps=20",
        "warmup.steps=12",
        "warmup.batch_size=16",
        "data.train_questions=32",
    ).succeeded()
    for policy in POLICIES:
        assert f"{policy}.model={tmp_path / policy}" in result.out
        builtin = AutoTokenizer.from_pretrained(ROOT / "dro_rl" / "builtin" / f"facts-{policy}")
        made = AutoTokenizer.from_pretrained(tmp_path / policy)
        assert made.get_vocab() == builtin.get_vocab()  # the shipped models fit today's world
        AutoModelForCausalLM.from_pretrained(tmp_path / policy)
    falls = [line.split() for line in result.out.splitlines() if line.startswith("  loss ")]
    assert len(falls) == 2
    assert all(float(to) < float(start) for _, start, _, to, *_ in falls)
    again = dro_rl("warmup", "recipes/demo.yaml", "--output", tmp_path)
    again.refused(f"{tmp_path / 'selector'}: exists already", "--output")


def test_scratch_policies_on_hotpot_in_the_publishers_format(tmp_path):
    """Warm-up, then one iteration of DRO, with the shipped recipe made small."""
    questions = [
        {
            "_id": f"q{i}",
            "question": f"Which lake lies in the town number {i}?",
            "answer": f"Lake {i}",
            "type": "bridge",
            "level": "easy",
            "supporting_facts": [[f"Town {i}", 0]],
            "context": [
                [f"Town {i}", [f"In town number {i} lies the Lake {i}.", " It is deep."]],
                [f"Hill {i}", [f"Hill number {i} is in another country."]],
            ],
        }
        for i in range(24)
    ]
    path = tmp_path / "hotpot.json"
    path.write_text(json.dumps(questions))
    settings = [
        f"data.path={path}",
        "data.evaluation_questions=8",
        f"retrieval.cache_dir={tmp_path / 'cache'}",
        *(f"{p}.model={tmp_path / p}" for p in POLICIES),
        *(f"{p}.scratch.vocabulary=400" for p in POLICIES),
    ]
    small = ["warmup.pretraining_steps=10", "warmup.steps=10", "warmup.batch_size=4"]
    dro_rl("warmup", "recipes/hotpot_local.yaml", *settings, *small).succeeded()
    run = tmp_path / "run"
    dro_rl(
        "train",
        "recipes/hotpot_local.yaml",
        *settings,
        "training.iterations=1",
        f"tracking.run_dir={run}",
        "cluster.mode=local",
        "rollout.engine=transformers",
    ).succeeded()
    assert evaluation(run, 1)["questions"] == 8
    assert evaluation(run, 1)["bound"] > evaluation(run, 0)["bound"]
