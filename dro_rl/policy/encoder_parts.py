"""What learns of an encoder where not all of it does: its last layers, or adapters (LoRA)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

from torch import nn

from dro_rl.errors import UserError
from dro_rl.sections.lora import Lora


def train_last_layers(model: nn.Module, count: int, name: str) -> nn.ModuleList:
    """Freeze all but the last transformer layers and what comes after them; gives all layers.

    Embeddings stay frozen wherever they stand: those of relative positions enter every layer.

    Args:
        model: the encoder, or its transformer alone.
        name: the encoder's, for messages.
    Raises:
        UserError: it has no such layers, or fewer.
    """
    layers = _layers(transformer(model, name))
    if layers is None:
        raise UserError(
            f"selector.train: last_layers: {name} has no list of transformer layers: "
            "set selector.train: all"
        )
    if count > len(layers):
        raise UserError(
            f"selector.layers ({count}): {name} has {len(layers)} transformer layers: set it to "
            f"{len(layers)} or less, or selector.train: all"
        )
    first = next(layers[len(layers) - count].parameters())
    model.requires_grad_(False)
    learns = False
    for parameter in model.parameters():  # in the order of their use
        learns = learns or parameter is first
        parameter.requires_grad_(learns)
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.requires_grad_(False)
    return layers


def transformer(model: nn.Module, name: str) -> Any:
    """The model of transformers that an encoder has.

    Raises:
        UserError: it has none.
    """
    from transformers import PreTrainedModel

    found = next((m for m in model.modules() if isinstance(m, PreTrainedModel)), None)
    if found is None:
        raise UserError(f"selector.train: {name} has no transformer: set it to all or head")
    return found


def _layers(found: Any) -> nn.ModuleList | None:
    count = getattr(found.config.get_text_config(), "num_hidden_layers", None)
    lists = (m for m in found.modules() if isinstance(m, nn.ModuleList))
    return next((m for m in lists if len(m) == count), None)


# --- adapters -------------------------------------------------------------------------------------


def add_adapters(model: nn.Module, lora: Lora, name: str) -> None:
    """Freeze an encoder, and put adapters that add nothing yet beside its transformer's weights.

    Raises:
        UserError: the recipe names layers that it does not have.
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        target_modules=lora.target_modules,
    )
    model.requires_grad_(False)
    try:
        inject_adapter_in_model(config, transformer(model, name))
    except ValueError as error:
        raise UserError(
            f"selector.lora.target_modules: {lora.target_modules} cannot be adapted in {name} "
            f"({str(error).splitlines()[0][:200]}): name its linear layers, or take all-linear"
        ) from error


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """The encoder as it was before they learned, in the block."""
    layers = [layer for _, layer in _adapted(model)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def merged(model: nn.Module) -> Any:
    """A copy of an encoder with its adapters folded into its weights; nothing of peft is left."""
    copy = deepcopy(model)
    for name, layer in _adapted(copy):
        layer.merge()
        copy.set_submodule(name, layer.get_base_layer())
    for module in copy.modules():
        if hasattr(module, "peft_config"):
            del module.peft_config
    return copy


def _adapted(model: nn.Module) -> list[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer

    return [(n, m) for n, m in model.named_modules() if isinstance(m, LoraLayer)]
