"""Where recipes and rewards are found: the working folder, the checkout, the installed package."""

from __future__ import annotations

import os
from pathlib import Path

from dro_rl.errors import UserError
from dro_rl.jsonlines import located

_PACKAGE = Path(__file__).resolve().parent


def find_file(name: str, folder: str) -> Path:
    """The file that `name` means, where `folder` is "recipes" or "rewards".

    A path that exists wins. Otherwise the same name is looked for among the files that the
    project carries, so that an installed wheel works from any folder.

    Raises:
        UserError: there is none; the message lists those that the project carries.
    """
    path = located(name)
    if os.path.isfile(path):  # Path.is_file raises where a name is too long
        return path
    for shipped in shipped_folders(folder):
        candidate = shipped / Path(*(p for p in path.parts if p != folder))
        if not path.is_absolute() and os.path.isfile(candidate):
            return candidate
    suffix = ".yaml" if folder == "recipes" else ".py"
    known = sorted(
        {f"{folder}/{f.name}" for d in shipped_folders(folder) for f in d.glob(f"*{suffix}")}
    )
    raise UserError(f"{name}: no such file. The project carries {', '.join(known) or 'none'}")


def shipped_folders(folder: str) -> list[Path]:
    """The project's own copies of `folder`: in a checkout, then in an installed wheel."""
    return [d for d in (_PACKAGE.parent / folder, _PACKAGE / folder) if d.is_dir()]
