"""From what a recipe says to its reward: a file, a module's class, a server, a sum of these."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import get_args

from dro_rl.errors import UserError
from dro_rl.remote import check_url
from dro_rl.resources import find_file
from dro_rl.reward.base import Need, Reward, Scale
from dro_rl.reward.settings import checked_settings
from dro_rl.reward.weighted_sum import Term, WeightedSum
from dro_rl.sections.reward import RewardSection, WeightedReward


def load_reward(reward: str | RewardSection | Sequence[WeightedReward]) -> Reward:
    """The reward that a recipe names: one, with its settings, or a weighted sum of several.

    Raises:
        UserError: there is no such file, module or class, not exactly one Reward in the file, a
            syntax error in it, a setting that the reward does not have or of another type, a
            `scale` or `needs` that is none, or a server that does not answer.
    """
    if isinstance(reward, str):
        reward = RewardSection(use=check_url(reward, "reward") if "://" in reward else reward)
    if isinstance(reward, RewardSection):
        return _load(reward)
    return WeightedSum([Term(_load(r), r.weight, r.scale) for r in reward])


def code_of(reward: Reward) -> str | None:
    """What stands for the code behind a reward's scores, its settings aside, so that a mended
    reward is told from what it was; None where it runs elsewhere."""
    if isinstance(reward, WeightedSum):
        codes = [code_of(term.reward) for term in reward.terms]
        return None if None in codes else " ".join(map(str, codes))
    source = None if reward.remote else inspect.getsourcefile(type(reward))
    return hashlib.sha256(Path(source).read_bytes()).hexdigest() if source else None


def _load(section: RewardSection) -> Reward:
    found = _class(section)
    settings = {**section.settings, "url": section.use} if section.is_url else section.settings
    source = section.use if section.is_url else f"{section.use}: {found.__name__}"
    made = found(**checked_settings(found, settings, f"reward {source}"))
    label = f"reward {found.__name__}"
    if made.scale not in get_args(Scale):
        raise UserError(f'{label}: scale must be "log" or "linear", not {made.scale!r}')
    needs = made.needs
    if not isinstance(needs, tuple | list) or not all(n in get_args(Need) for n in needs):
        raise UserError(
            f'{label}: needs must be a tuple of "likelihood" and "answer", not {needs!r}'
        )
    return made


def _class(section: RewardSection) -> type[Reward]:
    name = section.use
    if section.is_url:
        from dro_rl.reward.remote import RemoteReward  # httpx takes its time

        return RemoteReward
    if section.is_file:
        return _from_file(find_file(name, "rewards"))
    module_name, _, class_name = name.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), class_name)):
        raise UserError(
            f"reward {name!r}: give a file such as rewards/f1.py, module:Class, or the address of "
            "a reward server"
        )
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name not in (module_name, module_name.partition(".")[0]):
            raise  # the module is there; what it imports is not
        raise UserError(f"reward {name!r}: no module {module_name} on the Python path") from error
    except SyntaxError as error:
        raise _misspelt(error, module_name) from error
    found = getattr(module, class_name, None)
    if not (inspect.isclass(found) and issubclass(found, Reward)):
        raise UserError(f"reward {name!r}: {module_name} has no Reward class {class_name}")
    return _whole(found, name)


def _from_file(path: Path) -> type[Reward]:
    spec = importlib.util.spec_from_file_location(f"dro_rl_reward_{path.stem}", path)
    assert spec and spec.loader
    module: ModuleType = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise _misspelt(error, str(path)) from error
    classes = [
        c
        for c in vars(module).values()
        if inspect.isclass(c) and issubclass(c, Reward) and c.__module__ == module.__name__
    ]
    if len(classes) != 1:
        names = ", ".join(c.__name__ for c in classes) or "none"
        raise UserError(f"{path}: must define exactly one Reward, and has {names}")
    return _whole(classes[0], str(path))


def _misspelt(error: SyntaxError, source: str) -> UserError:
    line = (error.text or "").strip()
    place = f"{error.filename or source}" + (f", line {error.lineno}" if error.lineno else "")
    return UserError(f"{place}: {error.msg}" + (f": {line}" if line else ""))


def _whole(found: type[Reward], source: str) -> type[Reward]:
    if inspect.isabstract(found):
        raise UserError(f"{source}: {found.__name__} must define score(self, outcomes)")
    return found
