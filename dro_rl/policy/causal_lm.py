"""Loading and saving a causal LM policy: hub name or folder, full weights or LoRA."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from dro_rl.errors import UserError
from dro_rl.jsonlines import located
from dro_rl.model_folders import refuse_pickled
from dro_rl.policy import four_bit, sharding
from dro_rl.prompts import PromptWriter, prompt_style
from dro_rl.sections.policy import PolicySection

BUILTIN = Path(__file__).resolve().parent.parent / "builtin"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LEFT, RIGHT = ":left", ":right"  # of what an adapter adds to a weight
_UNHEARD_OF = "\N{OLD ITALIC LETTER ESH} qxzvj"  # words that no vocabulary has whole


def resolve_model(name: str) -> str:
    """The folder or hub name that a recipe's `model` or `init` means.

    `builtin/NAME` is a model that this package carries.

    Raises:
        UserError: a folder that is not a model's, or a path that does not exist.
    """
    if name.startswith("builtin/"):
        folder = BUILTIN / name.removeprefix("builtin/")
        if not folder.is_dir():
            known = ", ".join(f"builtin/{p.name}" for p in sorted(BUILTIN.glob("*/")))
            raise UserError(f"{name}: this package carries no such model; it has {known}")
        return str(folder)
    folder = located(name)
    if os.path.exists(folder):  # Path's own raises at long names
        if not (folder / "config.json").is_file():
            raise UserError(
                f"{name}: not a model's folder (it has no config.json): give the folder that "
                "save_pretrained wrote"
            )
        refuse_pickled(folder, name)
        return str(folder)
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise UserError(
            f"{name}: no such folder, and not a hub name of the form owner/name. If a warm-up is "
            "to make it, run `dro-rl warmup RECIPE` first"
        )
    return name


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model.

    Raises:
        UserError: it cannot be loaded or has no end-of-sequence token.
    """
    source = resolve_model(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        tokenizer(_UNHEARD_OF)  # one whose vocabulary lacks what stands for the unknown raises
    except Exception as error:  # a damaged file makes transformers raise a dozen unrelated kinds
        raise _not_loadable(name, "tokenizer", error) from error
    if tokenizer.eos_token_id is None:
        raise UserError(f"{name}: its tokenizer has no end-of-sequence token: set eos_token in it")
    if not tokenizer.is_fast:
        raise UserError(f"{name}: needs a fast tokenizer (a tokenizer.json)")
    return tokenizer


def prompt_writer(section: PolicySection, name: str) -> PromptWriter:
    """The writer of prompts for the policy that `name` holds, under the recipe's section.

    Raises:
        UserError: the tokenizer cannot be loaded, or the model's context is too short.
    """
    check_context(section, name)
    tokenizer = load_tokenizer(name)
    style = prompt_style(tokenizer, section.prompt)
    return PromptWriter(tokenizer, style, section.max_length - section.max_new_tokens)


def check_context(section: PolicySection, name: str) -> None:
    """Refuse a model whose context is shorter than `max_length`, before an engine is started.

    Raises:
        UserError: it is, or the model has no readable configuration.
    """
    try:
        config = AutoConfig.from_pretrained(resolve_model(name), trust_remote_code=False)
    except UserError:
        raise
    except Exception as error:  # as above
        raise _not_loadable(name, "configuration", error) from error
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    if context is not None and context < section.max_length:
        raise UserError(
            f"max_length {section.max_length} exceeds the context of {name} ({context} tokens): "
            f"set max_length to {context} or less"
        )


def load_model(
    section: PolicySection, name: str, *, training: bool, device: str | None = None
) -> PreTrainedModel:
    """A causal LM, by default on this process's GPU where it has one.

    For training, weights that learn are float32 whatever `dtype` says, since a bfloat16 weight
    loses updates smaller than 1/256 of it; the forward pass then runs under autocast.

    Raises:
        UserError: it cannot be loaded.
    """
    source = resolve_model(name)
    full = training and section.lora is None
    dtype = torch.float32 if full else _DTYPES[section.dtype]
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    quantised = training and section.lora is not None and section.lora.quantize is not None
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        if training:
            _without_dropout(config)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            dtype=dtype,
            output_loading_info=True,
            trust_remote_code=False,
            use_safetensors=True,
            **(four_bit.arguments(dtype, device) if quantised else {}),
        )
    except Exception as error:  # as above
        raise _not_loadable(name, "model", error) from error
    model, read = loaded
    if read["missing_keys"]:  # which transformers fills with random numbers
        lacking = ", ".join(sorted(read["missing_keys"])[:3])
        raise UserError(f"{name}: its weights lack {lacking}: the file is damaged or incomplete")
    if quantised:
        four_bit.settle(model)
    if section.gradient_checkpointing and training:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.to(device).train(training)


def _without_dropout(config: Any) -> None:
    """Dropout would make the learner's log-probabilities differ from the engine's: the ratio of
    the policies would not be 1 on policy."""
    for name, value in config.to_dict().items():
        if isinstance(value, float) and name.endswith(("dropout", "_pdrop")):
            setattr(config, name, 0.0)


def forward_dtype(section: PolicySection) -> torch.dtype:
    """The dtype that forward passes run in."""
    return _DTYPES[section.dtype]


def autocast(section: PolicySection, model: nn.Module) -> torch.autocast:
    """The context in which the policy's forward passes run."""
    device = next(model.parameters()).device.type
    return torch.autocast(device, torch.bfloat16, enabled=section.dtype == "bfloat16")


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

    for name, module in _without_peft(model).named_modules():
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


def merged_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Weights under their plain Hugging Face names, LoRA folded in, the model left untouched.

    W + BA is computed beside W: merging in place and back would drift by rounding each time.
    A tied output embedding is left out, as Hugging Face checkpoints do.
    """
    factors = {name: sharding.whole(factor) for name, factor in adapter_factors(model)}
    for name, weight in _plain_weights(model):
        yield name, _adapted(name, sharding.whole(weight), factors)


def _plain_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    plain = _without_peft(model)
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
            dtype = _DTYPES[self._section.dtype]
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
    plain = _without_peft(model)
    state = {n: w.detach().to("cpu", dtype) for n, w in merged_weights(model) if writes}
    if not writes:
        return
    plain.save_pretrained(folder, state_dict=state)
    config = type(plain.config).from_pretrained(folder, trust_remote_code=False)
    config.dtype = dtype  # save_pretrained writes the dtype that the learner trains in
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _without_peft(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _not_loadable(name: str, what: str, error: Exception) -> UserError:
    first_line = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return UserError(
        f"{name}: its {what} could not be loaded ({first_line}). Give a folder in Hugging Face "
        "format, or a hub name and a connection to the hub (HF_TOKEN for gated models)"
    )
