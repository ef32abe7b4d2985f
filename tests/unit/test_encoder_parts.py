"""Encoders of which a part learns: its last layers, or adapters. Their probabilities and gradients
are enumerated with the others' in test_encoder.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from transformers import MPNetConfig, MPNetModel, T5Config, T5EncoderModel

from dro_rl.encoder_learner import EncoderLearner
from dro_rl.errors import UserError
from dro_rl.flops import encoder_size
from dro_rl.policy.encoder_files import load_encoder
from dro_rl.policy.encoder_parts import train_last_layers
from dro_rl.policy.picks import Picks
from dro_rl.policy.targets import Target
from dro_rl.recipe import Recipe
from dro_rl.records import Rollout, Selection, WeightedRollout
from tests.encoders import make_bi_encoder, make_cross_encoder, make_encoder_recipe
from tests.tiny import make_example

pytestmark = pytest.mark.unit

LAST = {"train": "last_layers", "layers": 1}
LORA = {"lora": {"rank": 4}}
GROUPS = [[Target((Picks(make_example(), (4, 3)),))], [Target((Picks(make_example(1), (0, 2)),))]]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("parts")
    return {"bi": make_bi_encoder(folder / "bi"), "cross": make_cross_encoder(folder / "cross")}


def learner_of(model: Path, settings: dict) -> EncoderLearner:
    recipe = make_encoder_recipe(model, settings)
    return EncoderLearner(recipe, "selector", str(model), 10, 1e-2)


def gradients(learner: EncoderLearner) -> dict[str, Tensor]:
    learner.backward(GROUPS)
    found = dict(learner.model.named_parameters())
    return {name: p.grad.clone() for name, p in found.items() if p.grad is not None}


# --- last layers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bi", "cross"])
def test_the_last_layers_gradient_is_that_of_the_whole(kind, models):
    whole = gradients(learner_of(models[kind], {}))
    part = gradients(learner_of(models[kind], LAST))
    above = {name for name in whole if "embeddings" not in name and "layer.0." not in name}
    assert part.keys() == above and any("layer.1.attention" in name for name in above)
    for name, found in part.items():
        assert torch.allclose(found, whole[name], rtol=1e-5, atol=1e-7), name
    if kind == "cross":
        assert any("classifier" in name for name in part)


@pytest.mark.parametrize("settings", [{}, LAST, LORA], ids=["all", "last layer", "lora"])
@pytest.mark.parametrize("kind", ["bi", "cross"])
def test_the_gradient_in_bfloat16_is_near(kind, settings, models):
    """Passes are in bfloat16, which has 8 bits of precision; weights and gradients are not."""
    exact = gradients(learner_of(models[kind], settings))
    low = gradients(learner_of(models[kind], {**settings, "dtype": "bfloat16"}))
    assert low.keys() == exact.keys()
    assert {g.dtype for g in low.values()} == {torch.float32}
    one, other = (torch.cat([g.flatten() for g in found.values()]) for found in (exact, low))
    assert not torch.equal(one, other)
    assert torch.cosine_similarity(one, other, dim=0) > 0.95
    assert float(other.norm() / one.norm()) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("settings", [LAST, LORA], ids=["last layer", "lora"])
def test_what_is_frozen_stays_to_the_bit(settings, models):
    learner = learner_of(models["bi"], settings)
    before = {n: p.clone() for n, p in learner.model.named_parameters()}
    for _ in range(2):
        learner.step_on(GROUPS)
    changed = {n for n, p in learner.model.named_parameters() if not torch.equal(p, before[n])}
    unused = {name for name in learner.trainable if "pooler" in name}  # mean pooling has none
    assert changed == learner.trainable.keys() - unused
    assert set(learner.weights()) == set(learner.trainable)


def test_embeddings_of_relative_positions_stay_frozen():
    """They enter every layer, the frozen ones too, and would have all of them gone through."""
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
    model = MPNetModel(MPNetConfig(vocab_size=9, num_hidden_layers=3, **sizes))
    train_last_layers(model, 2, "mpnet")
    learned = {n.split(".weight")[0] for n, p in model.named_parameters() if p.requires_grad}
    assert all(
        name.startswith(("encoder.layer.1", "encoder.layer.2", "pooler")) for name in learned
    )
    assert len([name for name in learned if name.startswith("encoder.layer.1")]) > 5


def test_what_comes_after_the_layers_learns():
    config = T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2)
    model = T5EncoderModel(config)
    train_last_layers(model, 1, "t5")
    learned = {n for n, p in model.named_parameters() if p.requires_grad}
    assert "encoder.final_layer_norm.weight" in learned
    assert not any("shared" in name or "block.0" in name for name in learned)


def test_more_layers_than_there_are(models):
    section = make_encoder_recipe(models["bi"], {"train": "last_layers", "layers": 3}).selector
    with pytest.raises(UserError, match=r"selector.layers \(3\): .*bi has 2 transformer layers"):
        load_encoder(section, str(models["bi"]))


def test_frozen_layers_count_a_third(models):
    whole, part = (
        encoder_size(make_encoder_recipe(models["bi"], settings).selector).body
        for settings in ({}, LAST)
    )
    assert 0.5 * whole < part < 0.8 * whole


# --- adapters -------------------------------------------------------------------------------------


def test_adapters_begin_as_nothing_and_can_be_left_out(models):
    """As they are for the reference of GRPO's KL term."""
    plain, adapted = learner_of(models["bi"], {}), learner_of(models["bi"], LORA)
    _, before = plain.probe(make_example())
    assert adapted.probe(make_example())[1] == pytest.approx(before, abs=1e-6)
    for _ in range(3):
        adapted.step_on(GROUPS)
    _, after = adapted.probe(make_example())
    assert after != pytest.approx(before, abs=1e-3)
    with adapted.model.disable_adapter():
        assert adapted.probe(make_example())[1] == pytest.approx(before, abs=1e-6)
    assert adapted.probe(make_example())[1] == after


def test_grpos_reference_is_the_encoder_without_them(models):
    algorithm = {"kind": "grpo", "kl": 0.1, "train": ["selector"]}
    settings = make_encoder_recipe(models["bi"], LORA).resolved() | {"algorithm": algorithm}
    recipe = Recipe.model_validate(settings)
    learner = EncoderLearner(recipe, "selector", str(models["bi"]), 10, 1e-2)
    selection = Selection("[5] > [4]", (4, 3), (-1.0, -1.0), (4, 3), False)
    batch = [WeightedRollout(Rollout(make_example(), (), (selection,), 0), (1.0,), ())]
    assert learner.step(batch).kl == pytest.approx(0, abs=1e-6)
    assert learner.step(batch).kl > 1e-4


def test_saving_leaves_the_learner_as_it_is(models, tmp_path):
    learner = learner_of(models["bi"], LORA)
    learner.step_on(GROUPS)
    _, before = learner.probe(make_example())
    learner.save(tmp_path / "selector")
    assert learner.probe(make_example())[1] == before
    assert not list((tmp_path / "selector").rglob("adapter*"))
    again = learner_of(models["bi"], LORA)
    again.restore(tmp_path / "selector")
    assert again.probe(make_example())[1] == before


def test_layers_to_adapt_that_are_not_there(models):
    section = make_encoder_recipe(models["bi"], {"lora": {"target_modules": ["q_proj"]}}).selector
    with pytest.raises(UserError, match="selector.lora.target_modules: .*q_proj.* cannot be adap"):
        load_encoder(section, str(models["bi"]))


# --- recipes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"train": "last_layers"}, "add layers: 2"),
        ({"layers": 2}, "leave layers out"),
        ({"train": "head", "lora": {}}, "leave out train: head"),
        ({"train": "head", "dtype": "bfloat16"}, "leave out dtype"),
        ({"lora": {"dropout": 0.1}}, "leave out lora.quantize and lora.dropout"),
        ({"lora": {"quantize": "4bit"}}, "leave out lora.quantize and lora.dropout"),
    ],
)
def test_settings_of_parts_that_do_not_go_together(models, settings, told):
    with pytest.raises(ValidationError, match=told):
        make_encoder_recipe(models["bi"], settings)
