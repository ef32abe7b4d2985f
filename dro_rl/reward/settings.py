"""A reward's own settings: the arguments of its constructor, checked against their annotations."""

from __future__ import annotations

import difflib
import inspect
import typing
from collections.abc import Mapping
from typing import Any

from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError

from dro_rl.errors import UserError
from dro_rl.reward.base import Reward

_OF_THE_RECIPE = ("use", "weight", "scale")


def checked_settings(cls: type[Reward], given: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The settings, converted to the types that the constructor of `cls` declares.

    Raises:
        UserError: an unknown or missing setting, a value of another type, or a constructor that
            asks for what the recipe itself means; names the key and the nearest known one.
    """
    known = settings_of(cls)
    for name in known:
        if name in _OF_THE_RECIPE:
            raise UserError(
                f"{source}: a setting may not be called {name!r}, which recipes use: rename it"
            )
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
            it_has = f"it has {', '.join(known)}" if known else "it has none"
            hint = f"did you mean {near[0]}?" if near else it_has
            raise UserError(f"{source}: unknown setting {name!r}; {hint}")
    for name, parameter in known.items():
        if name not in given and parameter.default is inspect.Parameter.empty:
            raise UserError(f"{source}: the setting {name!r} is required")
    hints = _hints(cls, source) if given else {}
    return {k: _converted(hints.get(k, Any), k, v, source) for k, v in given.items()}


def settings_of(cls: type[Reward]) -> dict[str, inspect.Parameter]:
    """The constructor's parameters by name, less `*args` and `**kwargs`."""
    loose = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(cls).parameters
    return {name: p for name, p in parameters.items() if p.kind not in loose}


def _hints(cls: type[Reward], source: str) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls.__init__, include_extras=True)
    except NameError as error:
        raise UserError(
            f"{source}: its settings cannot be checked: {error}: import what their annotations "
            "name, and not under TYPE_CHECKING alone"
        ) from error


def _converted(hint: Any, name: str, value: Any, source: str) -> Any:
    try:
        converted = TypeAdapter(hint).validate_python(value)
    except PydanticSchemaGenerationError:  # a type of the user's own
        return value
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, (name, *first["loc"])))
        raise UserError(f"{source}: {place}: {first['msg']} (given: {value!r})") from error
    if isinstance(value, bool) and not isinstance(converted, bool):
        raise UserError(f"{source}: {name} is not a switch, and cannot be {str(value).lower()}")
    return converted
