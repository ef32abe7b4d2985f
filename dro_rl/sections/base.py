"""What every part of the recipe shares. Imports no torch, Ray or vLLM."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Rate = Annotated[float, Field(ge=0, le=1)]
MAY_CHANGE = "may change"
"""In `Annotated`: a setting that a resumed run may have another than it was begun with, since no
result depends on it, or in a way that is meant."""
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

    def lasting(self) -> dict[str, Any]:
        """Every setting by dotted key, but for those that MAY_CHANGE."""
        flat: dict[str, Any] = {}
        for key, value in self:
            field = type(self).model_fields.get(key)
            if not (field and MAY_CHANGE in field.metadata):
                flat |= _by_dotted_key(key, value)
        return flat


def _by_dotted_key(key: str, value: Any) -> dict[str, Any]:
    if isinstance(value, Section):
        return {f"{key}.{inner}": v for inner, v in value.lasting().items()}
    if isinstance(value, list) and value and isinstance(value[0], Section):
        flat: dict[str, Any] = {}
        for i, one in enumerate(value):
            flat |= _by_dotted_key(f"{key}.{i}", one)
        return flat
    return {key: value}
