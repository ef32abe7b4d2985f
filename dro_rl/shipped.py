"""The recipes that the project carries: `dro-rl recipes`, and copies to start one's own from."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from dro_rl.errors import UserError
from dro_rl.resources import shipped_folders

_BASE = re.compile(r"^(extends|base): *([^\s#]+\.yaml)", re.M)


@dataclass(frozen=True, slots=True)
class Shipped:
    """A recipe, or a comparison of several, and what its first lines say of it."""

    name: str
    path: Path
    command: str  # of dro-rl: train or compare
    about: str
    needs: str
    takes: str


def shipped_recipes() -> list[Shipped]:
    """All of them; those that start others come first.

    Raises:
        UserError: the installation carries none.
    """
    folders = shipped_folders("recipes")
    if not folders:
        raise UserError("this installation carries no recipes: install the project again")
    root = folders[0]
    files = sorted(root.rglob("*.yaml"), key=lambda p: (len(p.relative_to(root).parts), p))
    return [_read(path, str(path.relative_to(root))) for path in files]


def copy_recipe(name: str, target: Path) -> Path:
    """A shipped recipe in a file of one's own, which works wherever it lies.

    Args:
        name: as `dro-rl recipes` shows it, with or without .yaml.
        target: a file that is not there yet, or a folder.
    Raises:
        UserError: no such recipe, or the file is there already or cannot be written.
    """
    known = {recipe.name: recipe for recipe in shipped_recipes()}
    recipe = known.get(name) or known.get(f"{name}.yaml")
    if recipe is None:
        raise UserError(f"{name}: no recipe of the project; it has {', '.join(known)}")
    place = target / recipe.path.name if target.is_dir() else target
    root = Path(str(recipe.path).removesuffix(recipe.name))
    text = recipe.path.read_text(encoding="utf-8")
    text = _BASE.sub(lambda m: f"{m[1]}: {_from_anywhere(recipe.path, m[2], root)}", text)
    try:
        with place.open("x", encoding="utf-8") as file:
            file.write(text)
        place.chmod(place.stat().st_mode | stat.S_IXUSR)  # `ray job submit FILE` runs it
    except FileExistsError as error:
        raise UserError(f"{place}: is there already: give another name, or remove it") from error
    except OSError as error:
        raise UserError(f"{place}: cannot be written ({error.strerror})") from error
    return place


def _from_anywhere(path: Path, base: str, root: Path) -> str:
    """The name under which the project's recipe `base`, written beside `path`, is found."""
    found = os.path.normpath(path.parent / base)
    return os.path.relpath(found, root) if os.path.isfile(found) else base


def _read(path: Path, name: str) -> Shipped:
    first, *lines = path.read_text(encoding="utf-8").splitlines()
    said: dict[str, str] = {"needs": "", "takes": ""}
    about: list[str] = []
    for line in lines:
        if not line.startswith("# "):
            break
        label, _, rest = line.removeprefix("# ").partition(": ")
        if label.lower() in said:
            said[label.lower()] = rest
        else:
            about.append(line.removeprefix("# ").strip())
    sentence = re.match(r".*?[.:](?= |$)", " ".join(about))
    what = sentence[0].rstrip(":.") if sentence else " ".join(about)
    return Shipped(name, path, first.split()[-1], what, **said)
