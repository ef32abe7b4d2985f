"""Adapters above a base in 4 bits: what the learner computes is what everybody else gets."""

import json
from importlib.util import find_spec

import pytest
import torch
from pydantic import ValidationError
from transformers import GPT2Config, GPT2LMHeadModel

from dro_rl.errors import UserError
from dro_rl.learner import Learner
from dro_rl.policy import four_bit
from dro_rl.policy.causal_lm import load_model
from dro_rl.policy.weights import unpack
from dro_rl.recipe import Recipe
from dro_rl.records import WeightedRollout
from dro_rl.rollout.worker import RolloutWorker
from tests.models import make_tokenizer
from tests.tiny import make_example, make_recipe, make_rollout

pytestmark = pytest.mark.unit
needs_bitsandbytes = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed: dro-rl[qlora]"
)
FOUR_BIT = {"lora": {"rank": 4, "quantize": "4bit"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tiny")


def learner_of(recipe: Recipe) -> Learner:
    return Learner(recipe, "selector", recipe.selector.model, 10, 1e-2)


def batch_of(recipe: Recipe) -> list[WeightedRollout]:
    rollout = make_rollout(recipe, make_example(), [(0, 1), (2,), (0, 1), (3, 2)])
    weights = (0.4, 0.3, 0.2, 0.1)
    return [WeightedRollout(rollout, weights, weights)]


@needs_bitsandbytes
@pytest.mark.parametrize("checkpointing", [False, True])
def test_engines_get_what_the_learner_computes_before_and_after_it_has_learned(
    folder, checkpointing
):
    recipe = make_recipe(folder, selector={**FOUR_BIT, "gradient_checkpointing": checkpointing})
    learner, losses = learner_of(recipe), []
    worker = RolloutWorker(recipe, "selector", recipe.selector.model)
    for version in range(1, 4):
        worker.load_weights(learner.weights(), version)
        completion, wanted = learner.probe(make_example())
        found = worker.probe(completion.prompt_ids, completion.token_ids)
        assert found == pytest.approx(wanted, abs=1e-4)
        losses.append(learner.step(batch_of(recipe)).loss)
    assert losses[0] > losses[1] > losses[2]


@needs_bitsandbytes
def test_layers_hold_a_byte_for_two_weights_and_adapters_alone_learn(folder):
    learner = learner_of(make_recipe(folder, selector=FOUR_BIT))
    layers = four_bit.packed(learner.model.get_base_model())
    assert len(layers) == 7 * learner.model.config.num_hidden_layers
    for layer in layers.values():
        assert layer.weight.dtype == torch.uint8
        assert 2 * layer.weight.numel() == layer.in_features * layer.out_features
    assert all("lora_" in name for name in learner.trainable)


@needs_bitsandbytes
def test_a_checkpoint_is_a_plain_model_of_the_weights_that_4_bits_stand_for(folder, tmp_path):
    recipe = make_recipe(folder, selector=FOUR_BIT)
    learner = learner_of(recipe)
    learner.step(batch_of(recipe))
    learner.save_policy(tmp_path / "selector")
    assert "quantization" not in json.dumps(
        json.loads((tmp_path / "selector" / "config.json").read_text())
    )
    plain = recipe.selector.model_copy(update={"lora": None})
    saved = load_model(plain, str(tmp_path / "selector"), training=False).state_dict()
    first = load_model(plain, recipe.selector.model, training=False).state_dict()
    for name, weight in unpack(learner.weights()).items():
        assert torch.equal(saved[name], weight)
        changed = not torch.equal(first[name], weight)
        assert changed == ("_proj" in name), name


@needs_bitsandbytes
def test_layers_that_are_not_plain_are_refused(tmp_path):
    """GPT-2 keeps its weights the other way round."""
    recipe = make_recipe(tmp_path, selector=FOUR_BIT)
    tokens = len(make_tokenizer())
    config = GPT2Config(
        vocab_size=tokens, n_embd=64, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    GPT2LMHeadModel(config).save_pretrained(recipe.selector.model)
    with pytest.raises(UserError, match="quantize: GPT2LMHeadModel has layers that are not plain"):
        learner_of(recipe)


def test_a_missing_package_is_named(folder, monkeypatch):
    monkeypatch.setattr(four_bit, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"quantize: 4bit needs bitsandbytes: pip install"):
        four_bit.require(make_recipe(folder, selector=FOUR_BIT).selector)


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"selector": {**FOUR_BIT, "ranks": 2}, "cluster": {"mode": "ray"}}, "set ranks to 1"),
        (
            {
                "selector": FOUR_BIT,
                "generator": {"share_base_with": "selector", "model": None, "lora": {"rank": 4}},
            },
            "leave out selector.lora.quantize",
        ),
        ({"selector": FOUR_BIT, "algorithm": {"kind": "trl_grpo"}}, "selector.lora.quantize"),
    ],
)
def test_what_4_bits_do_not_go_with_is_refused(folder, sections, told):
    with pytest.raises(ValidationError, match=told):
        make_recipe(folder, **sections)
