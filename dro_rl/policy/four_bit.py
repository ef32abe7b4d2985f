"""Weights in 4 bits below LoRA's adapters: QLoRA (arXiv 2305.14314), by bitsandbytes.

The 4 bits stand for other weights than the model's own, and a policy is the sum of those and its
adapters. So that is what engines, the reward service and checkpoints get, as whole weights.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from dro_rl.errors import UserError
from dro_rl.sections.policy import PolicySection


def require(section: PolicySection) -> None:
    """Refuse `lora.quantize` where bitsandbytes is not installed.

    Raises:
        UserError: it is not.
    """
    if section.lora and section.lora.quantize and find_spec("bitsandbytes") is None:
        raise UserError(
            "lora.quantize: 4bit needs bitsandbytes: pip install 'dro-rl[qlora]', or leave it out"
        )


def arguments(computes_in: torch.dtype, device: str) -> dict[str, Any]:
    """What `from_pretrained` takes for NF4 with scales that are quantised too."""
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=computes_in,
    )
    return {"quantization_config": config, "device_map": {"": device}}


def settle(model: Any) -> None:
    """Have transformers save what it is given (it would write the 4 bits, and say so in the
    configuration), and bitsandbytes score with the weights that it trains with (on a CPU it would
    pack them anew, with scales rounded to bfloat16).

    Raises:
        UserError: a layer keeps its weight the other way round, as GPT-2's do, and engines would be
            sent the transposed one.
    """
    if any(layer.source_cls is not nn.Linear for layer in packed(model).values()):
        raise UserError(
            f"lora.quantize: {type(model).__name__} has layers that are not plain linear ones, "
            "which are not taken in 4 bits: leave it out for this model"
        )
    del model.hf_quantizer, model.config.quantization_config
    for layer in packed(model).values():
        layer.support_avx512bf16_for_cpu = False


def packed(model: nn.Module) -> dict[str, Any]:
    """The layers whose weight is in 4 bits, by that weight's name in the state."""
    if not getattr(model, "is_loaded_in_4bit", False):
        return {}
    from bitsandbytes.nn import Linear4bit  # pyright: ignore[reportMissingImports]

    return {f"{n}.weight": m for n, m in model.named_modules() if isinstance(m, Linear4bit)}


def unpacked(layer: Any) -> Tensor:
    """The weight that a layer computes with: (outputs, inputs)."""
    from bitsandbytes.functional import dequantize_4bit  # pyright: ignore[reportMissingImports]

    return dequantize_4bit(layer.weight.data, layer.weight.quant_state)
