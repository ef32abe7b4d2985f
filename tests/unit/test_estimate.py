"""What `dro-rl check` says of memory, against models and arithmetic."""

import json
from dataclasses import replace
from typing import Any

import pytest

from dro_rl.estimate import footprint, memory_in_words
from dro_rl.estimate.footprint import GIB
from dro_rl.estimate.passes import largest
from dro_rl.estimate.shape import Shape, shape_of
from dro_rl.recipe import Recipe
from dro_rl.sections.algorithm import GrpoAlgorithm
from dro_rl.sections.policy import PolicySection
from tests.made_recipes import BILLION, recipe_of
from tests.models import make_llama

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def no_hub(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))


def section(model: str, **settings: Any) -> PolicySection:
    return PolicySection.model_validate({"model": model, **settings})


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


def test_ranks_divide_what_is_held_but_for_the_layers_that_compute():
    def of(ranks: int, **settings: Any) -> dict[str, float]:
        return held(recipe_of(selector={"dtype": "float32", "ranks": ranks, **settings}))

    one, four, count = of(1), of(4), BILLION.parameters
    for name in ("gradients", "optimiser"):
        assert four[name] == pytest.approx(one[name] / 4)
    layer, embeddings = BILLION.body / 16, 2 * 32000 * 2048
    whole = four["weights"] - count
    assert whole == pytest.approx(4 * (2 * layer + embeddings), rel=0.01)
    adapted = of(4, lora={"rank": 8})
    assert adapted["gradients"] == pytest.approx(of(1, lora={"rank": 8})["gradients"] / 4)
    assert adapted["weights"] < of(1, lora={"rank": 8})["weights"]


def test_adapters_alone_have_gradients_and_moments():
    parts = held(recipe_of(selector={"dtype": "bfloat16", "lora": {"rank": 8}}))
    h, i = 2048, 8192
    adapters = 16 * 8 * (4 * 2 * h + 3 * (h + i))
    assert parts["gradients"] == pytest.approx(4 * adapters)
    assert parts["optimiser"] == pytest.approx(8 * adapters)
    assert parts["weights"] == pytest.approx(2 * BILLION.parameters + 4 * adapters)
    some = {"rank": 8, "target_modules": ["q_proj", "v_proj"]}
    assert held(recipe_of(selector={"lora": some}))["gradients"] == 4 * 16 * 8 * 4 * h


def test_four_bits_below_adapters_are_half_a_byte_and_scales_and_engines_hold_whole_weights():
    lora = {"rank": 8, "quantize": "4bit"}
    recipe = recipe_of(selector={"dtype": "bfloat16", "lora": lora})
    plain = recipe_of(selector={"dtype": "bfloat16", "lora": {"rank": 8}})
    saved = held(plain)["weights"] - held(recipe)["weights"]
    assert saved == pytest.approx((2 - 4.127 / 8) * BILLION.body, rel=1e-4)
    whole, with_factors = (
        footprint.engine(r, "selector", BILLION, "cpu", 0).parts["weights"] for r in (recipe, plain)
    )
    assert whole == pytest.approx(with_factors * 2 / 3)


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


def test_what_comes_and_goes_leaves_holes_in_the_heap_of_a_cpu_alone():
    recipe = recipe_of(selector={"dtype": "float32"})
    parts = footprint.learner(recipe, "selector", BILLION, "cpu").parts
    assert parts["holes"] == pytest.approx((parts["gradients"] + parts["activations"]) / 2)
    assert footprint.learner(recipe, "selector", BILLION, "gpu").parts["holes"] == 0


def test_a_pass_holds_a_question_even_where_the_budget_does_not():
    recipe = recipe_of(training={"tokens_per_microbatch": 1}, algorithm={"samples": 4})
    assert largest(recipe, "selector").tokens == 1024 - 32 + 4 * 32
    assert largest(recipe, "generator").tokens == 4 * 1024
    recipe = recipe_of(training={"tokens_per_microbatch": 10**9, "batch_size": 3})
    assert not largest(recipe, "generator").several


def test_each_of_several_ranks_holds_its_part():
    alone = held(recipe_of(selector={"dtype": "float32"}))
    two = recipe_of(selector={"dtype": "float32", "ranks": 2})
    parts = held(two)
    assert parts["optimiser"] == pytest.approx(alone["optimiser"] / 2)
    assert alone["weights"] / 2 < parts["weights"] < 0.75 * alone["weights"]
    shapes: Any = {"selector": BILLION, "generator": BILLION}
    roles = [f.role for f in footprint.processes(two, shapes, "cpu")]
    assert roles.count("selector learner") == 2


def test_a_shared_base_is_held_once_by_engine_and_learner():
    lora = {"dtype": "bfloat16", "lora": {"rank": 8}}
    apart = recipe_of(selector=lora, generator=lora)
    generator = {"lora": {"rank": 8}, "share_base_with": "selector", "model": None}
    shared = recipe_of(selector=lora, generator=generator)
    shapes: Any = {"selector": BILLION, "generator": BILLION}
    base = 2 * BILLION.parameters / GIB

    def bases(recipe: Recipe) -> int:
        found = footprint.processes(recipe, shapes, "gpu", 80)
        return sum(round(f.parts["weights"] / base) for f in found)

    assert bases(apart) == 5 and bases(shared) == 2
