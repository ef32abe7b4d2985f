"""LoRA adapters beside a base model that stays as it is: into a peft model, or into files.

Both take what `lora.adapter_factors` gives, with the scaling in the factors, so that an
adapter made here has a scaling of 1.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from dro_rl.policy.lora import LEFT, RIGHT, adapted_layers, adapter_matrices, add_lora
from dro_rl.sections.policy import PolicySection


def add_served(model: Any, section: PolicySection, name: str) -> Any:
    """The model with an adapter of a policy's shape that adds nothing yet and never learns."""
    assert section.lora is not None
    unscaled = section.lora.model_copy(update={"alpha": float(section.lora.rank), "dropout": 0.0})
    served = section.model_copy(update={"lora": unscaled, "gradient_checkpointing": False})
    adapted = add_lora(model, served, name)
    return adapted.eval().requires_grad_(False)


def load_factors(model: Any, factors: Mapping[str, Tensor]) -> None:
    """Replace the active adapter of `add_served`.

    Raises:
        RuntimeError: the factors are of other weights than it adapts.
    """
    layers = dict(adapted_layers(model))
    wanted = {f"{name}.weight{side}" for name in layers for side in (LEFT, RIGHT)}
    if wanted != factors.keys():
        raise RuntimeError(f"adapters of other weights: {sorted(wanted ^ factors.keys())[:3]}")
    with torch.no_grad():
        for name, layer in layers.items():
            left, right = factors[f"{name}.weight{LEFT}"], factors[f"{name}.weight{RIGHT}"]
            down, up, flipped = adapter_matrices(layer, layer.active_adapters[0])
            up.copy_(right.T if flipped else left)
            down.copy_(left.T if flipped else right)


def write_adapter(folder: Path, factors: Mapping[str, Tensor]) -> None:
    """Write an adapter of linear layers in peft's format."""
    tensors, modules, rank = {}, set[str](), 0
    for name, factor in factors.items():
        layer, _, side = name.rpartition(".weight:")
        modules.add(layer.rpartition(".")[2])
        matrix = "B" if f":{side}" == LEFT else "A"
        rank = factor.shape[0] if matrix == "A" else factor.shape[1]
        tensors[f"base_model.model.{layer}.lora_{matrix}.weight"] = factor.contiguous()
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted(modules),
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(tensors, folder / "adapter_model.safetensors")
