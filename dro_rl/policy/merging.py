"""A policy's weights under their Hugging Face names, LoRA folded in: sent, received, written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from dro_rl.policy import four_bit, sharding
from dro_rl.policy.causal_lm import forward_dtype, resolve_model
from dro_rl.policy.lora import LEFT, RIGHT, adapter_factors, without_peft
from dro_rl.sections.policy import PolicySection


def merged_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Weights under their plain Hugging Face names, LoRA folded in, the model left untouched.

    W + BA is computed beside W: merging in place and back would drift by rounding each time.
    A tied output embedding is left out, as Hugging Face checkpoints do.
    """
    factors = {name: sharding.whole(factor) for name, factor in adapter_factors(model)}
    for name, weight in _plain_weights(model):
        yield name, _adapted(name, sharding.whole(weight), factors)


def _plain_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    plain = without_peft(model)
    tied = bool(getattr(plain.config, "tie_word_embeddings", False))
    packed = four_bit.packed(plain)
    beside = tuple(f"{name}." for name in packed)  # scales
    for name, weight in plain.state_dict().items():
        if "lora_" in name or name.startswith(beside) or (tied and name == "lm_head.weight"):
            continue
        whole = four_bit.unpacked(packed[name]) if name in packed else weight
        yield name.replace(".base_layer.", "."), whole


def _adapted(name: str, weight: Tensor, factors: Mapping[str, Tensor]) -> Tensor:
    if name + LEFT not in factors:
        return weight
    delta = factors[name + LEFT].float() @ factors[name + RIGHT].float()
    return (weight.float() + delta).to(weight.dtype)


class Received:
    """Whole weights from what a learner sent: they are whole, or LoRA's factors alone.

    Args:
        section: of the policy; its `model` is what the learner's adapters adapt.
    """

    def __init__(self, section: PolicySection) -> None:
        self._section = section
        self._base: dict[str, Tensor] = {}

    def whole(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The policy's weights, named as in a Hugging Face checkpoint.

        The weights below the adapters are read when factors first come, not taken from the model
        that the caller runs, which has the sum after the first.

        Raises:
            RuntimeError: factors of a weight that the policy's model does not have.
        """
        if not any(name.endswith(LEFT) for name in tensors):
            return tensors
        if not self._base:
            dtype = forward_dtype(self._section)
            model = AutoModelForCausalLM.from_pretrained(
                resolve_model(self._section.model),
                dtype=dtype,
                trust_remote_code=False,
                use_safetensors=True,
            )
            self._base = dict(_plain_weights(model))
        unknown = {name.rpartition(":")[0] for name in tensors} - self._base.keys()
        if unknown:
            raise RuntimeError(f"adapters of unknown weights: {sorted(unknown)[:3]}")
        return {name: _adapted(name, weight, tensors) for name, weight in self._base.items()}


def load_weights(model: Any, tensors: Mapping[str, Tensor]) -> None:
    """Replace all weights of a model; a tied output embedding may be left out.

    Raises:
        RuntimeError: names or shapes are not this model's.
    """
    missing, unexpected = model.load_state_dict(dict(tensors), strict=False)
    tied = bool(getattr(model.config, "tie_word_embeddings", False))
    missing = [name for name in missing if not (tied and name == "lm_head.weight")]
    if missing or unexpected:
        raise RuntimeError(f"weights lack {missing[:3]} and bring unknown {unexpected[:3]}")


def save_policy(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    dtype: torch.dtype,
    *,
    writes: bool = True,
) -> None:
    """Write the policy in Hugging Face format, LoRA folded in, weights in `dtype`.

    Of a model in parts, all ranks do this together, and one of them writes.
    """
    plain = without_peft(model)
    state = {n: w.detach().to("cpu", dtype) for n, w in merged_weights(model) if writes}
    if not writes:
        return
    plain.save_pretrained(folder, state_dict=state)
    config = type(plain.config).from_pretrained(folder, trust_remote_code=False)
    config.dtype = dtype  # save_pretrained writes the dtype that the learner trains in
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
