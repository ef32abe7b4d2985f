"""What the memory estimate says that autograd keeps of a layer, against what it keeps."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from transformers import LlamaConfig, LlamaForCausalLM

from dro_rl.estimate import footprint
from dro_rl.estimate.shape import Shape
from dro_rl.policy import causal_lm
from dro_rl.policy.completion import Completion
from dro_rl.policy.likelihood import Likelihood
from dro_rl.policy.lora import add_lora
from dro_rl.recipe import Recipe
from tests.made_recipes import recipe_of

pytestmark = pytest.mark.unit


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
    return add_lora(model, recipe.selector) if lora else model


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
