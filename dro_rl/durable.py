"""Files and folders that are there whole or not at all, after a power failure too.

Everything is written aside, flushed to the disk, and renamed; the folder that has the new name is
flushed as well, or the name could be lost. A sealed folder has a manifest, by which a reader sees
that it is what was written.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dro_rl.errors import UserError

MANIFEST = "manifest.json"
_PROBE = b"\0" * 2**20
_OF_DISKS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.EIO, errno.ESTALE),
}


class CannotWrite(UserError):
    """The disk does not take what has to be written."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What a disk refuses becomes one message that names the path; other errors stay as they are.

    Raises:
        CannotWrite: the disk is full, read-only, or not to be reached.
    """
    try:
        yield
    except CannotWrite:
        raise
    except Exception as error:
        reason = _refused(error) or _refused_now(path)
        if reason is None:
            raise
        raise CannotWrite(f"{path}: cannot be written ({reason})") from error


def _refused(error: BaseException) -> str | None:
    """What the operating system said, where it is behind an error, of another process too."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    behind: BaseException | None = error
    while behind is not None:
        if isinstance(behind, OSError) and behind.errno in _OF_DISKS:
            return os.strerror(behind.errno)
        behind = getattr(behind, "cause", None) or behind.__cause__ or behind.__context__
    return None


def _refused_now(path: Path) -> str | None:
    """Ask the disk: libraries that write weights have errors of their own, without a number."""
    try:
        with tempfile.TemporaryFile(dir=next(p for p in path.parents if p.is_dir())) as file:
            file.write(_PROBE)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return os.strerror(error.errno or 0)
    return None


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """A file by a function that writes to the path that it is given: whole or not at all.

    Raises:
        CannotWrite: see `writing`.
    """
    with writing(path):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name + ".", suffix=".partial")
        os.close(handle)
        partial = Path(name)
        try:
            write(partial)
            partial.chmod(0o644)
            flush(partial)
            os.replace(partial, path)
            flush(path.parent)
        finally:
            partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing: a reader never sees half of it."""
    write_file(path, lambda partial: partial.write_text(text, encoding="utf-8"))


@contextmanager
def aside(folder: Path) -> Iterator[Path]:
    """A new folder to fill, sealed at the end of the block: `publish` gives it its name. A block
    that fails leaves nothing of it.

    Raises:
        CannotWrite: see `writing`.
    """
    partial = folder.with_name(folder.name + ".partial")
    try:
        with writing(folder):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            yield partial
            _seal(partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _seal(folder: Path) -> None:
    """Write the manifest, size and checksum of every file, and flush all of it."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    with ThreadPoolExecutor(4) as pool:  # hashing lets go of the interpreter
        described = list(pool.map(_describe, files))
    names = [str(path.relative_to(folder)) for path in files]
    manifest = json.dumps(dict(zip(names, described, strict=True)), indent=1)
    (folder / MANIFEST).write_text(manifest + "\n", encoding="utf-8")
    for path in (*folder.rglob("*"), folder):
        flush(path)


def publish(folder: Path) -> None:
    """Give what was filled `aside` its name."""
    with writing(folder):
        os.replace(folder.with_name(folder.name + ".partial"), folder)
        flush(folder.parent)


def damage(folder: Path) -> str | None:
    """What is wrong with a folder that was sealed; None where it is what it was."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        sizes = {name: (folder / name).stat().st_size for name in manifest}
        for name, size in sizes.items():
            if size != manifest[name]["bytes"]:
                wanted = manifest[name]["bytes"]
                return f"{name} has {size} bytes and not the {wanted} that were written"
        with ThreadPoolExecutor(4) as pool:
            found = pool.map(_describe, [folder / name for name in manifest])
            for name, about in zip(manifest, found, strict=True):
                if about != manifest[name]:
                    return f"{name} is not what was written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except OSError as error:
        return f"{Path(error.filename or folder).name} cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is not what was written"
    return None


def remove(path: Path) -> None:
    """A file, or a folder, which is renamed first: half of one is never seen."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    aside = path.with_name(path.name.removesuffix(".partial") + ".partial")
    if aside != path:
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(path, aside)
    shutil.rmtree(aside)


def flush(path: Path) -> None:
    """Wait until a file, or a folder's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems have no such wish for folders
            raise
    finally:
        os.close(handle)


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {
            "bytes": os.fstat(file.fileno()).st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }
