"""Folders of a cache, each named by the hash of what made it, whole or not there at all."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dro_rl.errors import UserError

MANIFEST = "made.json"


def made_folder(
    cache: Path, kind: str, makers: Mapping[str, Any], write: Callable[[Path], object]
) -> Path:
    """The folder that `write` makes of `makers`, written only where it is not there yet.

    It is written beside its place and then renamed, so processes may ask for the same one at once.

    Args:
        makers: all that its contents depend on, as plain values.
        write: fills an empty folder.
    Raises:
        UserError: the cache cannot be written, or what is there is damaged or of other makers.
    """
    folder = cache / f"{kind}-{digest(makers)}"
    if not folder.is_dir():
        with scratch(cache) as building:
            write(building)
            _write_manifest(building, makers)
            _publish(building, folder)
    check_folder(folder, makers)
    return folder


def digest(makers: Any) -> str:
    """32 hexadecimal digits that stand for plain values."""
    return hashlib.sha256(json.dumps(makers, sort_keys=True).encode()).hexdigest()[:32]


@contextmanager
def scratch(cache: Path) -> Iterator[Path]:
    """An empty folder in the cache, gone after the block.

    Raises:
        UserError: the cache cannot be written.
    """
    is_new = not cache.exists()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        # tempfile's folders are for their user alone; a cache may be shared, as its umask says.
        building = cache / f".building-{secrets.token_hex(8)}"
        building.mkdir()
    except OSError as error:
        raise UserError(
            f"cannot write to {cache}: {error.strerror}: set retrieval.cache_dir to a folder that "
            "can be written"
        ) from error
    try:
        yield building
    finally:
        shutil.rmtree(building, ignore_errors=True)
        if is_new:
            with suppress(OSError):  # it holds what was made
                cache.rmdir()


def _publish(building: Path, folder: Path) -> None:
    try:
        os.replace(building, folder)
    except OSError:
        if not folder.is_dir():  # else another process was first with the same
            raise


def check_folder(folder: Path, makers: Mapping[str, Any]) -> None:
    """Refuse a folder that is damaged or was made of something else.

    Raises:
        UserError: names the folder and what is wrong with it.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        made_of, files = manifest["makers"], manifest["files"].items()
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise damaged(folder, f"its {MANIFEST} cannot be read") from error
    for key, value in makers.items():
        if made_of.get(key) != value:
            raise damaged(folder, f"it was made of another {key} ({made_of.get(key)}, not {value})")
    for name, size in files:
        found = (folder / name).stat().st_size if (folder / name).is_file() else None
        if found != size:
            state = "is missing" if found is None else f"has {found} bytes, not {size}"
            raise damaged(folder, f"its file {name} {state}")


def damaged(folder: Path, what: str) -> UserError:
    """The error of a folder that must not be used."""
    return UserError(f"{folder} is damaged: {what}; remove the folder, and it is made again")


def _write_manifest(folder: Path, makers: Mapping[str, Any]) -> None:
    files = {
        str(path.relative_to(folder)): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    (folder / MANIFEST).write_text(json.dumps({"makers": makers, "files": files}, indent=1))
