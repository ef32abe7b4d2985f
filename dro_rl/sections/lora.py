"""The recipe's `lora`, of either policy."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from dro_rl.sections.base import Rate, Section


class Lora(Section):
    """Low-rank adapters (peft) on the linear layers."""

    rank: PositiveInt = 16
    alpha: PositiveFloat = 32
    dropout: Rate = 0.0
    target_modules: str | list[str] = "all-linear"
    quantize: Literal["4bit"] | None = Field(
        default=None,
        description="4bit: the learner holds what is below the adapters in 4 bits (QLoRA); needs "
        "bitsandbytes",
    )
