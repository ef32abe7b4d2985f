"""The recipe's `reward`: one reward with its settings, or a weighted sum of several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
    field_validator,
)

from dro_rl.errors import UserError
from dro_rl.plain_yaml import NotPlain, read_plain
from dro_rl.remote import url_problem
from dro_rl.sections.base import Section

Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class RewardSection(Section):
    """One reward. Every further key is a setting of its own, checked when it is loaded."""

    model_config = ConfigDict(extra="allow", frozen=True)

    use: str = Field(
        min_length=1, description="a file, module:Class, or the http(s) address of a reward server"
    )

    @field_validator("use")
    @classmethod
    def _asks_over_http(cls, use: str) -> str:
        if "://" in use and (problem := url_problem(use)):
            raise ValueError(problem)
        return use

    @property
    def settings(self) -> dict[str, Any]:
        """The reward's own."""
        return dict(self.model_extra or {})

    @property
    def is_url(self) -> bool:
        return "://" in self.use

    @property
    def is_file(self) -> bool:
        return self.use.endswith(".py") and not self.is_url

    def __str__(self) -> str:
        named = ", ".join(f"{k}: {v}" for k, v in self.settings.items())
        return f"{self.use} ({named})" if named else self.use


class WeightedReward(RewardSection):
    """A term of a sum; see `dro_rl.reward.weighted_sum`."""

    weight: Weight = 1.0
    scale: Literal["log", "linear"] | None = Field(
        default=None, description="take its logarithm or exponential first; by default as it is"
    )

    def __str__(self) -> str:
        converted = f"{self.scale} " if self.scale else ""
        return f"{self.weight:g} x {converted}{super().__str__()}"


def _form(value: Any) -> str:
    return "sum" if isinstance(value, list | tuple) else "one"


RewardChoice = Annotated[
    Annotated[RewardSection, Tag("one")]
    | Annotated[list[WeightedReward], Field(min_length=1), Tag("sum")],
    Discriminator(_form),
]


def written_out(value: Any) -> Any:
    """What a recipe's `reward` says, with names alone written as `{use: NAME}`.

    Raises:
        ValueError: it is neither text, a mapping nor a list of these.
    """
    if isinstance(value, list | tuple):
        return [_one(item) for item in value]
    return _one(value)


def _one(value: Any) -> Any:
    if isinstance(value, str):
        return {"use": value}
    if not isinstance(value, dict | RewardSection):
        raise ValueError(
            "write a file such as rewards/f1.py, module:Class or an address; {use: FILE, "
            "SETTING: ...}; or a list of {use: FILE, weight: ...}"
        )
    return value


def read_reward(text: str) -> RewardSection | list[WeightedReward]:
    """The same from a command line, as YAML.

    Raises:
        UserError: it is not what a recipe's `reward` may say.
    """
    try:
        return TypeAdapter(RewardChoice).validate_python(written_out(read_plain(text)))
    except NotPlain as error:
        raise UserError(f"reward {text!r}: is not YAML: {error}") from error
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, e['loc'][1:]))}: {e['msg']}" for e in error.errors())
        raise UserError(f"reward {text!r}: {told}") from error
    except ValueError as error:
        raise UserError(f"reward {text!r}: {error}") from error


def in_words(reward: RewardSection | Sequence[WeightedReward]) -> str:
    """For messages: `rewards/f1.py (beta: 2)`, or the terms of a sum."""
    return str(reward) if isinstance(reward, RewardSection) else " + ".join(map(str, reward))
