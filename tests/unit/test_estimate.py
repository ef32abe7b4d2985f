"""What `dro-rl check` says of memory, against models, arithmetic and what autograd keeps."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from dro_rl.algorithm_sections import GrpoAlgorithm
from dro_rl.errors import UserError
from dro_rl.estimate import footprint, gpus, memory_in_words
from dro_rl.estimate.footprint import GIB
from dro_rl.estimate.passes import largest
from dro_rl.estimate.shape import Shape, shape_of
from dro_rl.policy import causal_lm
from dro_rl.policy.likelihood import Completion, Likelihood
from dro_rl.recipe import POLICIES, PolicySection, Recipe
from dro_rl.recipe_file import load_recipe
from tests.commands import ROOT
from tests.models import make_llama
from tests.tiny import make_recipe

pytestmark = pytest.mark.unit
BILLION = Shape(16, 2048, 16, 16, 128, 8192, 32000, False)


@pytest.fixture(autouse=True)
def no_hub(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))


def section(model: str, **settings: Any) -> PolicySection:
    return PolicySection.model_validate({"model": model, **settings})


def recipe_of(**sections: dict[str, Any]) -> Recipe:
    """Of models that are not there."""
    policy = {"model": "someone/Model-1B", "max_length": 1024, "max_new_tokens": 32}
    settings: dict[str, dict[str, Any]] = {
        "data": {"kind": "jsonl", "path": "unused.jsonl"},
        "retrieval": {"kind": "given", "candidates": 5},
        "selector": dict(policy),
        "generator": dict(policy),
    }
    for name, changes in sections.items():
        settings[name] = {**settings.get(name, {}), **changes}
    return Recipe.model_validate(settings)


# --- shapes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_a_folders_shape_is_that_of_its_model(tmp_path, tied):
    model = make_llama(tmp_path, tied=tied)
    shape = shape_of(section(str(tmp_path)))
    assert shape is not None and not shape.assumed
    counted = sum(p.numel() for p in model.parameters())
    assert shape.parameters == replace(shape, count=None).parameters == counted
    head_and_norms = {"lm_head.weight", "model.embed_tokens.weight"}
    linears = {n: p for n, p in model.named_parameters() if p.ndim == 2 and n not in head_and_norms}
    assert shape.body == sum(p.numel() for p in linears.values())


def test_a_models_shape_is_read_in_the_hubs_cache(tmp_path):
    snapshot = tmp_path / "hub" / "hub" / "models--someone--Model-70B" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    model = make_llama(snapshot)
    shape = shape_of(section("someone/Model-70B"))
    assert shape is not None
    assert shape.parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "like", "billions"),
    [
        ("Qwen/Qwen2.5-1.5B-Instruct", "Qwen2.5-1.5B", 1.54),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "Llama-3-8B", 8.03),
        ("someone/Thing-22b", "Qwen2.5-32B", 22.0),
    ],
)
def test_a_name_alone_gives_the_nearest_public_model_and_says_so(name, like, billions):
    shape = shape_of(section(name))
    assert shape is not None and shape.assumed == like
    assert shape.parameters / 1e9 == pytest.approx(billions, abs=0.005)
    told = "\n".join(memory_in_words(recipe_of(selector={"model": name}), None))
    assert f"of the shape of {like}" in told


def test_what_a_warm_up_will_make_counts_as_what_it_is_made_from():
    made = shape_of(section("runs/none/selector", init="Qwen/Qwen2.5-1.5B"))
    assert made == shape_of(section("Qwen/Qwen2.5-1.5B"))
    sizes = {"hidden_size": 96, "layers": 3, "heads": 3, "intermediate_size": 256}
    scratch = shape_of(section("runs/none", init="scratch", scratch={**sizes, "vocabulary": 2048}))
    assert scratch == Shape(3, 96, 3, 3, 32, 256, 2048, True)


def test_a_model_of_unknown_size_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_embd": 8}))
    for model in ("someone/some-model", str(tmp_path)):
        (line,) = memory_in_words(recipe_of(generator={"model": model}), None)
        assert model in line and "unknown" in line


# --- what a process holds -------------------------------------------------------------------------


def held(recipe: Recipe, policy: Any = "selector") -> dict[str, float]:
    """Bytes of a learner's parts, without what the libraries take."""
    parts = footprint.learner(recipe, policy, BILLION, "cpu").parts
    return {name: gib * GIB for name, gib in parts.items() if name != "process"}


def test_a_float32_learner_holds_sixteen_bytes_a_parameter():
    parts, count = held(recipe_of(selector={"dtype": "float32"})), BILLION.parameters
    assert parts["weights"] == parts["gradients"] == pytest.approx(4 * count)
    assert parts["optimiser"] == pytest.approx(8 * count)


def test_a_bfloat16_learner_holds_float32_weights_and_their_copies_in_the_forward_pass():
    parts, count = held(recipe_of(selector={"dtype": "bfloat16"})), BILLION.parameters
    assert parts["weights"] == pytest.approx(6 * count)


def test_adapters_alone_have_gradients_and_moments():
    parts = held(recipe_of(selector={"dtype": "bfloat16", "lora": {"rank": 8}}))
    h, i = 2048, 8192
    adapters = 16 * 8 * (4 * 2 * h + 3 * (h + i))
    assert parts["gradients"] == pytest.approx(4 * adapters)
    assert parts["optimiser"] == pytest.approx(8 * adapters)
    assert parts["weights"] == pytest.approx(2 * BILLION.parameters + 4 * adapters)
    some = {"rank": 8, "target_modules": ["q_proj", "v_proj"]}
    assert held(recipe_of(selector={"lora": some}))["gradients"] == 4 * 16 * 8 * 4 * h


def test_a_frozen_reference_is_counted():
    plain, restrained = (
        held(recipe_of(selector={"dtype": "float32"}, algorithm=algorithm))["weights"]
        for algorithm in ({"kind": "grpo"}, {"kind": "grpo", "kl": 0.1})
    )
    assert isinstance(recipe_of(algorithm={"kind": "grpo"}).algorithm, GrpoAlgorithm)
    assert restrained - plain == pytest.approx(4 * BILLION.parameters)


def test_activations_grow_with_the_tokens_of_a_pass_and_checkpointing_saves_most_of_them():
    def activations(tokens: int, **settings: Any) -> float:
        training = {"tokens_per_microbatch": tokens}
        return held(recipe_of(training=training, selector=settings))["activations"]

    assert activations(8192) == pytest.approx(2 * activations(4096))
    assert activations(4096, gradient_checkpointing=True) < activations(4096) / 5
    assert activations(4096, dtype="float32") > 1.5 * activations(4096)


def test_a_pass_holds_a_question_even_where_the_budget_does_not():
    recipe = recipe_of(training={"tokens_per_microbatch": 1}, algorithm={"samples": 4})
    assert largest(recipe, "selector").tokens == 1024 - 32 + 4 * 32
    assert largest(recipe, "generator").tokens == 4 * 1024
    recipe = recipe_of(training={"tokens_per_microbatch": 10**9, "batch_size": 3})
    assert not largest(recipe, "generator").several


# --- against autograd -----------------------------------------------------------------------------


def bytes_kept(recipe: Recipe, shape: Shape) -> Iterator[float]:
    """Bytes that autograd keeps a token and layer, as the difference of two depths."""
    completions = [Completion((1, *range(3, 250)), (5, 6)), Completion((1, *range(3, 250)), (7, 8))]
    for layers in (1, 3):
        model = make_model(recipe, replace(shape, layers=layers))
        kept: dict[int, int] = {}

        def note(tensor: torch.Tensor, kept: dict[int, int] = kept) -> torch.Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        likelihood = Likelihood(model)
        with causal_lm.autocast(recipe.selector, model):
            likelihood.of(completions)  # and the check of its ways
            with saved_tensors_hooks(note, lambda t: t):
                total = likelihood.of(completions).sum()
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        yield sum(size for place, size in kept.items() if place not in weights)
        del total


def make_model(recipe: Recipe, shape: Shape) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
    )
    lora, dtype = recipe.selector.lora, causal_lm.forward_dtype(recipe.selector)
    model: Any = LlamaForCausalLM(config).to(dtype if lora else torch.float32)
    return causal_lm.add_lora(model, recipe.selector) if lora else model


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("lora", [None, {"rank": 4}])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_what_autograd_keeps_of_a_layer_is_what_is_estimated(dtype, lora, kv_heads):
    shape = Shape(1, 128, 4, kv_heads, 32, 320, 300, True)
    recipe = recipe_of(selector={"dtype": dtype, "lora": lora})
    shallow, deep = bytes_kept(recipe, shape)
    tokens = 248 + 2
    copies = 0
    if dtype == "bfloat16" and lora is None:
        copies = 2 * shape.body  # autocast's, which are counted as weights
    measured = (deep - shallow) / 2 - copies
    assert footprint.kept(recipe.selector, shape) * tokens == pytest.approx(measured, rel=0.1)


# --- GPUs -----------------------------------------------------------------------------------------


def told(recipe: Recipe, number: int, memory: float) -> str:
    return "\n".join(memory_in_words(recipe, (number, memory)))


def test_a_gpu_fits_or_what_to_change_is_said():
    recipe = load_recipe("dro_hotpot_1gpu.yaml")
    assert "DOES NOT FIT" not in told(recipe, 1, 80) and "fits, " in told(recipe, 1, 80)
    small = told(recipe, 1, 8)
    assert "DOES NOT FIT" in small and "lower " in small
    full = told(recipe_of(generator={"gradient_checkpointing": True}), 1, 24)
    assert "DOES NOT FIT" in full and "lora instead of all weights" in full


def test_processes_share_gpus_as_ray_places_them():
    recipe = recipe_of(rollout={"workers": 3})
    processes = list(footprint.processes(recipe, dict.fromkeys(POLICIES, BILLION), "gpu", 80))
    roles = [[f.role for f in group] for group in gpus.groups(processes, 4)]
    assert [len(group) for group in roles] == [2, 2, 2, 1]
    assert roles[0] == ["selector engine"] * 2 and roles[-1] == ["generator learner"]
    assert "3 of them would have nothing to do" in told(recipe, 10, 80)


def test_an_engine_without_room_for_one_sequence_is_told_of():
    recipe = recipe_of(
        selector={"model": "someone/Model-8B"}, rollout={"gpu_memory_utilization": 0.2}
    )
    text = told(recipe, 8, 80)
    assert "selector engine's share leaves" in text and "gpu_memory_utilization" in text


def test_gpus_are_given_with_their_memory(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))  # no nvidia-smi
    assert gpus.given_or_found(None, None) is None
    assert gpus.given_or_found(None, 24.0) == (1, 24.0)
    assert gpus.given_or_found(8, 80.0) == (8, 80.0)
    with pytest.raises(UserError, match="--gpu-memory"):
        gpus.given_or_found(8, None)


def test_gpus_of_this_machine_are_found(monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nprintf '81920\\n40960\\n'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert gpus.given_or_found(None, None) == (2, 40.0)
    tool.write_text("#!/bin/sh\necho 'no devices were found'; exit 9\n")
    assert gpus.given_or_found(None, None) is None


# --- the shipped recipes --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dro_hotpot", "dro_hotpot_1gpu", "dro_hotpot_2nodes"])
def test_a_recipe_fits_the_hardware_that_it_names(name):
    head = (ROOT / "recipes" / f"{name}.yaml").read_text().partition("\ndata:")[0]
    words = head.replace("\n#", "").split()
    number = int(words[words.index("--gpus") + 1]) if "--gpus" in words else 1
    memory = float(words[words.index("--gpu-memory") + 1].rstrip("`).,"))
    text = told(load_recipe(f"{name}.yaml"), number, memory)
    assert "DOES NOT FIT" not in text and "needs" not in text, text
    assert "nothing to do" not in text
    assert "not yet run" in " ".join(words)


def test_one_process_holds_what_all_hold_but_computes_for_one_at_a_time(tmp_path):
    recipe = make_recipe(tmp_path)
    shapes = {p: shape for p in POLICIES if (shape := shape_of(recipe.policy(p)))}
    parts = list(footprint.processes(recipe, shapes, "cpu"))
    one = footprint.one_process(parts)
    assert one.parts["weights"] == sum(f.parts["weights"] for f in parts)
    assert max(f.total for f in parts) <= one.total < sum(f.total for f in parts)
    assert "1 x everything" in "\n".join(memory_in_words(recipe, None))


def test_check_shows_it(tmp_path: Path):
    from tests.commands import dro_rl

    out = dro_rl("check", "recipes/dro_hotpot.yaml", "--gpus", "8", "--gpu-memory", "80")
    assert "On 8 GPUs of 80 GiB" in out.succeeded().out
    assert "Traceback" not in dro_rl("check", "recipes/demo.yaml").succeeded().err
