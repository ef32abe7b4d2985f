"""Loading a causal LM policy and its tokenizer, by hub name or folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn
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
from dro_rl.policy import four_bit
from dro_rl.prompts import PromptWriter, prompt_style
from dro_rl.sections.policy import PolicySection

BUILTIN = Path(__file__).resolve().parent.parent / "builtin"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
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


def _not_loadable(name: str, what: str, error: Exception) -> UserError:
    first_line = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return UserError(
        f"{name}: its {what} could not be loaded ({first_line}). Give a folder in Hugging Face "
        "format, or a hub name and a connection to the hub (HF_TOKEN for gated models)"
    )
