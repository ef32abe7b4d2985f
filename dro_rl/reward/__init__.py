"""What a selection is worth: the `Reward` that a recipe names, and how it is found."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import ClassVar, Literal, get_args

from dro_rl.errors import UserError
from dro_rl.records import Outcome
from dro_rl.resources import find_file

Need = Literal["likelihood", "answer"]
Scale = Literal["log", "linear"]


class Reward(ABC):
    """Scores what the generator makes of a selection.

    `scale`: "log" when `score` returns log r [nats], "linear" when it returns r >= 0.
    `needs`: what an `Outcome` must carry; what is not named is not computed.
    """

    scale: ClassVar[Scale] = "linear"
    needs: ClassVar[tuple[Need, ...]] = ()

    @abstractmethod
    def score(self, outcomes: Sequence[Outcome]) -> list[float]:
        """One number an outcome, in order."""


def load_reward(name: str) -> Reward:
    """The reward that a recipe names: a file (`rewards/f1.py`) or `module:Class`.

    Raises:
        UserError: there is no such file, module or class, not exactly one Reward in the file, or
            its `scale` or `needs` is none that exists.
    """
    reward = _find(name)
    label = f"reward {type(reward).__name__}"
    if reward.scale not in get_args(Scale):
        raise UserError(f'{label}: scale must be "log" or "linear", not {reward.scale!r}')
    needs = reward.needs
    if not isinstance(needs, tuple | list) or not set(needs) <= set(get_args(Need)):
        raise UserError(
            f'{label}: needs must be a tuple of "likelihood" and "answer", not {needs!r}'
        )
    return reward


def _find(name: str) -> Reward:
    if name.endswith(".py"):
        return _from_file(find_file(name, "rewards"))
    module_name, _, class_name = name.partition(":")
    if not class_name:
        raise UserError(f"reward {name!r}: give a file such as rewards/f1.py, or module:Class")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name not in (module_name, module_name.partition(".")[0]):
            raise  # the module is there; what it imports is not
        raise UserError(f"reward {name!r}: no module {module_name} on the Python path") from error
    found = getattr(module, class_name, None)
    if not (inspect.isclass(found) and issubclass(found, Reward)):
        raise UserError(f"reward {name!r}: {module_name} has no Reward class {class_name}")
    return _make(found, name)


def _from_file(path: Path) -> Reward:
    spec = importlib.util.spec_from_file_location(f"dro_rl_reward_{path.stem}", path)
    assert spec and spec.loader
    module: ModuleType = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    classes = [
        c
        for c in vars(module).values()
        if inspect.isclass(c) and issubclass(c, Reward) and c.__module__ == module.__name__
    ]
    if len(classes) != 1:
        names = ", ".join(c.__name__ for c in classes) or "none"
        raise UserError(f"{path}: must define exactly one Reward, and has {names}")
    return _make(classes[0], str(path))


def _make(found: type[Reward], source: str) -> Reward:
    if inspect.isabstract(found):
        raise UserError(f"{source}: {found.__name__} must define score(self, outcomes)")
    return found()
