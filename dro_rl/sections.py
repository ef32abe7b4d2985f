"""What every part of the recipe shares. Imports no torch, Ray or vLLM."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Rate = Annotated[float, Field(ge=0, le=1)]
PolicyName = Literal["selector", "generator"]
POLICIES: tuple[PolicyName, ...] = ("selector", "generator")


class Section(BaseModel):
    """A part of the recipe. Unknown keys are errors."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _no_switch_for_a_number(cls, settings: Any) -> Any:
        """Without it `iterations: true` would be read as 1."""
        for key, value in settings.items() if isinstance(settings, dict) else ():
            field = cls.model_fields.get(key)
            if isinstance(value, bool) and field and field.annotation is not bool:
                raise ValueError(f"{key} is not a switch, and cannot be {str(value).lower()}")
        return settings
