"""The recipe's `selector` and `generator` sections: the two policies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_serializer, model_validator

from dro_rl.sections.base import MAY_CHANGE, POLICIES, Section
from dro_rl.sections.encoder import EncoderSelector
from dro_rl.sections.lora import Lora


class Scratch(Section):
    """A small Llama from random weights, with a BPE tokenizer trained on the corpus."""

    hidden_size: PositiveInt = 128
    layers: PositiveInt = 4
    heads: PositiveInt = 4
    intermediate_size: PositiveInt = 384
    vocabulary: int = Field(default=4096, ge=300)

    @model_validator(mode="after")
    def _divides(self) -> Scratch:
        head = self.hidden_size // self.heads
        if self.hidden_size % self.heads or head not in (32, 64, 80, 96, 128):
            raise ValueError(
                "hidden_size / heads must be 32, 64, 80, 96 or 128, which vLLM's CPU kernels take"
            )
        return self


class PolicySection(Section):
    model: str = Field(description="what training starts from: a folder or a hub name")
    init: str | None = Field(
        default=None,
        description="what `dro-rl warmup` makes `model` from: scratch, a folder or a hub name; "
        "without it `model` is used as it is",
    )
    scratch: Scratch = Scratch()
    prompt: Literal["auto", "plain", "chat"] = "auto"
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    lora: Lora | None = None
    max_length: PositiveInt = Field(
        default=4096, description="context [tokens]: prompt and completion"
    )
    max_new_tokens: PositiveInt = Field(default=32, description="longest completion [tokens]")
    learning_rate: PositiveFloat = 1e-6
    gradient_checkpointing: Annotated[bool, MAY_CHANGE] = False
    ranks: Annotated[PositiveInt, MAY_CHANGE] = Field(
        default=1,
        description="processes that train it together, each with a part of every weight (FSDP2)",
    )
    likelihood: Literal["auto", "dense"] = Field(
        default="auto",
        description="auto: what prompts share is computed once, where the model allows it; dense: "
        "a padded row a completion",
    )

    @model_validator(mode="after")
    def _room_for_a_prompt(self) -> PolicySection:
        if self.max_new_tokens >= self.max_length:
            raise ValueError("max_new_tokens must be smaller than max_length")
        return self

    @model_validator(mode="after")
    def _one_process_for_4_bits(self) -> PolicySection:
        if self.lora and self.lora.quantize and self.ranks > 1:
            raise ValueError("lora.quantize: 4 bits are not divided among ranks: set ranks to 1")
        return self


class SelectorSection(PolicySection):
    kind: Literal["causal_lm"] = "causal_lm"
    documents: PositiveInt = Field(default=5, description="K, most documents a selection holds")


class GeneratorSection(PolicySection):
    share_base_with: Literal["selector"] | None = Field(
        default=None,
        description="both policies are LoRA adapters on one base model, held once by the engine "
        "and once by the learners; what is of the base is the selector's where it is left out here",
    )
    answers: Literal["first", "any"] = Field(
        default="first",
        description="the likelihood of the first reference answer, or of any of them",
    )
    prune: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="document lists of a smaller weight are not learned from: saves their forward "
        "and backward pass, and the loss loses their share (rollout/pruned)",
    )
    is_none: ClassVar[bool] = False


class NoGenerator(GeneratorSection):
    """`generator: none`: nobody answers. It is written, shown and compared as that word; what would
    have been settings stand at their defaults."""

    model: Literal["none"] = "none"
    is_none = True

    @model_serializer
    def _as_written(self) -> str:
        return "none"


_OF_THE_BASE = ("model", "init", "scratch", "dtype", "gradient_checkpointing")


def with_shared_base(settings: Any) -> Any:
    """A recipe's settings, in which the generator of a shared base has what it leaves out of it."""
    selector, generator = (
        settings.get(p) if isinstance(settings, Mapping) else None for p in POLICIES
    )
    if not (isinstance(selector, Mapping) and isinstance(generator, Mapping)):
        return settings
    if not generator.get("share_base_with"):
        return settings
    missing = [k for k in _OF_THE_BASE if k in selector and generator.get(k) is None]
    return {**settings, "generator": {**generator, **{k: selector[k] for k in missing}}}


def check_shared_base(selector: SelectorSection, generator: GeneratorSection) -> None:
    """Refuse policies that cannot be two adapters on one base.

    Raises:
        ValueError: they cannot.
    """
    for name, section in zip(POLICIES, (selector, generator), strict=True):
        if section.lora is None:
            raise ValueError(
                "generator.share_base_with: selector needs a LoRA adapter for each policy: set "
                f"{name}.lora"
            )
        if section.lora.quantize:
            raise ValueError(
                "generator.share_base_with: selector has one engine serve the base as it is, not "
                f"what 4 bits stand for: leave out {name}.lora.quantize"
            )
        if section.ranks > 1:
            raise ValueError(
                "generator.share_base_with: selector trains both policies in one process: set "
                f"{name}.ranks to 1"
            )
    for key in _OF_THE_BASE:
        ours, theirs = getattr(generator, key), getattr(selector, key)
        if ours != theirs:
            raise ValueError(
                f"generator.{key} ({ours}) is not the selector's ({theirs}), and it belongs to the "
                "base model that generator.share_base_with: selector makes one: leave it out"
            )


Selector = Annotated[SelectorSection | EncoderSelector, Field(discriminator="kind")]
AnyPolicy = SelectorSection | EncoderSelector | GeneratorSection
