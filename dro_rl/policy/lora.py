"""LoRA on a causal LM: an adapter that learns, and what it adds to each weight."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from dro_rl.errors import UserError
from dro_rl.sections.policy import PolicySection

LEFT, RIGHT = ":left", ":right"  # of what an adapter adds to a weight


def add_lora(model: Any, section: PolicySection, name: str = "default") -> nn.Module:
    """The model with a fresh LoRA adapter (peft) of that name, whose weights are float32.

    It is the active one, the only one that learns, beside those that the model may have already.
    """
    from peft import LoraConfig, PeftModel, get_peft_model

    assert section.lora is not None
    config = LoraConfig(
        r=section.lora.rank,
        lora_alpha=section.lora.alpha,  # type: ignore[arg-type]
        lora_dropout=section.lora.dropout,
        target_modules=section.lora.target_modules,
        task_type="CAUSAL_LM",
    )
    if section.gradient_checkpointing:
        model.enable_input_require_grads()
    if isinstance(model, PeftModel):
        adapted = model
        adapted.add_adapter(name, config, autocast_adapter_dtype=True)
        adapted.set_adapter(name)
    else:
        adapted = get_peft_model(model, config, name, autocast_adapter_dtype=True)
    if getattr(model.config, "tie_word_embeddings", False):
        output = model.get_output_embeddings()
        if hasattr(output, "lora_A"):
            raise UserError(
                "lora.target_modules names the output embedding, which this model ties to its "
                "input embedding, so the two would no longer be one matrix: leave it out"
            )
    return adapted


def adapter_factors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What the active adapter adds to each weight, as two thin matrices: none for a model without.

    "NAME:left" (rows, rank) times "NAME:right" (rank, columns) is to be added to the weight that
    is NAME in a Hugging Face checkpoint; the adapters' scaling is in one of them.
    """
    for name, layer in adapted_layers(model):
        (adapter,) = layer.active_adapters
        down, up, flipped = adapter_matrices(layer, adapter)
        up = up * layer.scaling[adapter]
        left, right = (down.T, up.T) if flipped else (up, down)
        yield f"{name}.weight{LEFT}", left.detach()
        yield f"{name}.weight{RIGHT}", right.detach()


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The layers that the active adapter adapts, by the names that they have without it."""
    from peft.tuners.lora import LoraLayer

    for name, module in without_peft(model).named_modules():
        if isinstance(module, LoraLayer):
            known = {*module.lora_A, *module.lora_embedding_A}  # another may adapt other layers
            if known.intersection(module.active_adapters):
                yield name, module


def adapter_matrices(layer: Any, adapter: str) -> tuple[Tensor, Tensor, bool]:
    """A, (rank, inputs); B, (outputs, rank); and whether the layer's weight is (inputs, outputs),
    as an embedding's is."""
    if adapter in layer.lora_embedding_A:
        return layer.lora_embedding_A[adapter], layer.lora_embedding_B[adapter], True
    return layer.lora_A[adapter].weight, layer.lora_B[adapter].weight, layer.fan_in_fan_out


def without_peft(model: Any) -> Any:
    """The model below its adapters, which stay in its layers."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
