"""What `dro-rl check` says of an encoder's memory, against models and measured runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from transformers import BertConfig, BertModel

from dro_rl.estimate import encoder, memory_in_words
from dro_rl.estimate.encoder import EncoderShape
from dro_rl.estimate.footprint import GIB
from dro_rl.policy.encoder_files import load_encoder
from dro_rl.policy.room import room_for_hidden_states
from dro_rl.recipe import Recipe
from tests.encoders import make_bi_encoder, make_cross_encoder, make_encoder_recipe

pytestmark = pytest.mark.unit

MINI_LM = EncoderShape(
    layers=6, hidden=384, intermediate=1536, positions=256, parameters=22_713_216
)


def recipe_of(model: str = "model", selector: dict | None = None, **sections) -> Recipe:
    return make_encoder_recipe(Path(model), selector, **sections)


def held(recipe: Recipe, shape: EncoderShape = MINI_LM) -> dict[str, float]:
    """Bytes of the learner's parts."""
    assert recipe.selector.kind == "encoder"
    parts = encoder.learner(recipe, recipe.selector, shape, "cpu").parts
    return {name: gib * GIB for name, gib in parts.items()}


@pytest.mark.parametrize("make", [make_bi_encoder, make_cross_encoder])
@pytest.mark.parametrize(
    "settings",
    [{}, {"lora": {"rank": 4}}, {"train": "last_layers", "layers": 1}],
    ids=["all", "lora", "last layer"],
)
def test_a_folders_shape_is_that_of_its_model(tmp_path, make, settings):
    """What learns to a tenth: norms, poolers and classifiers are left aside."""
    section = recipe_of(str(make(tmp_path / "model")), settings).selector
    assert section.kind == "encoder"
    shape, model = encoder.shape_of(section), load_encoder(section, section.model)
    assert shape is not None
    assert (shape.layers, shape.hidden, shape.intermediate, shape.positions) == (2, 32, 64, 64)
    lora = sum(p.numel() for n, p in model.named_parameters() if "lora_" in n)
    assert shape.parameters == sum(p.numel() for p in model.parameters()) - lora
    assert shape.pairs == (model.what == "cross-encoder")
    learned = sum(p.numel() for n, p in model.learned() if "pooler" not in n)
    whole = settings == {}
    assert shape.learned(section) == pytest.approx(learned, rel=0.2 if whole else 0.1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_autograd_keeps_of_a_layer_is_what_is_estimated(dtype):
    found, low = [], dtype == "bfloat16"
    for layers in (1, 3):
        sizes = {"hidden_size": 128, "intermediate_size": 320, "num_attention_heads": 4}
        model = BertModel(BertConfig(vocab_size=300, num_hidden_layers=layers, **sizes)).eval()
        kept: dict[int, int] = {}

        def note(tensor: torch.Tensor, kept: dict[int, int] = kept) -> torch.Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with (
            saved_tensors_hooks(note, lambda t: t),
            torch.autocast("cpu", torch.bfloat16, enabled=low),
        ):
            total = model(torch.randint(3, 300, (2, 400))).last_hidden_state.sum()
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        found.append(sum(size for place, size in kept.items() if place not in weights))
        del total
    shape = EncoderShape(layers=1, hidden=128, intermediate=320, positions=512, parameters=1)
    casts = 2 * shape.layer if low else 0  # of the weights, once a pass
    estimated = encoder.kept(shape, dtype) * 800 + casts
    assert estimated == pytest.approx((found[1] - found[0]) / 2, rel=0.05)


def test_what_learns_has_gradients_and_moments():
    whole, head, last = (
        held(recipe_of(selector=settings))
        for settings in ({}, {"train": "head"}, {"train": "last_layers", "layers": 2})
    )
    count = MINI_LM.parameters
    assert whole["weights"] == whole["gradients"] == whole["optimiser"] / 2 == 4 * count
    assert head["gradients"] == 4 * 384**2 and head["activations"] == 0
    assert last["gradients"] == 4 * 2 * 12 * 384**2 and last["weights"] == 4 * count
    assert last["activations"] < whole["activations"] / 2
    restrained = held(recipe_of(algorithm={"kind": "grpo", "kl": 0.1}))
    assert restrained["weights"] == 8 * count


@pytest.mark.parametrize(
    ("selector", "tokens", "measured"),
    [
        ({}, 1400, 1.276),
        ({}, 5600, 1.774),
        ({"train": "last_layers", "layers": 2}, 5600, 1.079),
        ({"lora": {}}, 5600, 2.293),
    ],
)
def test_learners_of_minilm_took_what_is_estimated_to_a_fifth(selector, tokens, measured):
    """Peak resident memory [GiB] of a process with an EncoderLearner of all-MiniLM-L6-v2 and two
    steps on HotpotQA's questions of 10 documents, texts of 128 tokens, on one core; so few texts
    that next to nothing was kept of frozen layers."""
    training = {"tokens_per_microbatch": tokens, "batch_size": tokens // 1400}
    recipe = recipe_of(
        selector={**selector, "max_length": 128},
        retrieval={"candidates": 10},
        training=training,
    )
    estimated = sum(size for part, size in held(recipe).items() if part != "cache") / GIB
    assert estimated == pytest.approx(measured, rel=0.2)


@pytest.mark.parametrize(("pairs", "texts"), [(False, 5 + 9), (True, 5 * 9)])
def test_a_conditional_encoder_reads_what_its_picks_make_of_a_question(pairs, texts):
    """4 selections of 3 documents of 5: the question alone, and 8 times with what was picked."""
    recipe = recipe_of(
        selector={"documents": 3, "conditional": True, "max_length": 10},
        training={"batch_size": 1, "tokens_per_microbatch": 1},
    )
    assert recipe.selector.kind == "encoder"
    shape = replace(MINI_LM, pairs=pairs)
    assert encoder.largest(recipe, recipe.selector, shape) == 10 * texts


def test_what_frozen_layers_make_of_texts_is_kept_once_a_process(tmp_path):
    """On a CPU, where `dro_rl.policy.lower` keeps it; engine and learner of one process share."""
    model = str(make_bi_encoder(tmp_path / "model"))
    last = {"train": "last_layers", "layers": 1}
    room = room_for_hidden_states()
    assert held(recipe_of(model, last))["cache"] == pytest.approx(room)
    for settings in ({}, {"train": "last_layers", "layers": MINI_LM.layers}):
        assert held(recipe_of(model, settings))["cache"] == 0
    header, *told = memory_in_words(recipe_of(model, last), None)[1:]
    assert f"The cache is up to {room / GIB:.2f}" in header
    assert told[-1].split()[-1] == f"{room / GIB:.2f}"
    assert "cache is" not in "".join(memory_in_words(recipe_of(model, last), (1, 24.0)))


def test_it_is_told_of_every_process(tmp_path):
    told = "\n".join(memory_in_words(recipe_of(str(make_bi_encoder(tmp_path / "model"))), None))
    assert "1 x everything" in told and "M learn" in told
    several = recipe_of(str(tmp_path / "model"), cluster={"mode": "ray"}, rollout={"workers": 2})
    told = "\n".join(memory_in_words(several, None))
    for process in ("2 x selector engine", "1 x reward service", "1 x selector learner", "trainer"):
        assert process in told


def test_an_encoder_of_unknown_size_is_named():
    (line,) = memory_in_words(recipe_of("someone/encoder"), None)
    assert line == "Memory: unknown, for nothing here says how large someone/encoder is."


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model.safetensors", b""),
        ("model.safetensors", b"\x02\0\0\0\0\0\0\0[]"),
        ("model.safetensors", b"\xff" * 100),
        ("config.json", b"7"),
        ("config.json", b""),
        ("sentence_bert_config.json", b"[]"),
    ],
)
def test_a_damaged_encoder_is_of_unknown_size(tmp_path, file, content):
    """Training says so by name."""
    model = make_bi_encoder(tmp_path / "model")
    (model / file).write_bytes(content)
    (line,) = memory_in_words(recipe_of(str(model)), None)
    assert line.startswith("Memory: unknown")
