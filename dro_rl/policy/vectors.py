"""Vectors of texts by a frozen encoder: each is computed once, and kept in memory and on disk.

On disk they are in a folder that is named by what made them, in files that are never changed: a
file holds the vectors of some texts, and is named by the hash of its content. Processes may add
files at once, and one that is damaged is seen and left aside.
"""

from __future__ import annotations

import atexit
import hashlib
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dro_rl.durable import CannotWrite, write_file, writing
from dro_rl.policy.texts import drop_oldest

TaskText = tuple[str, str]

_A_FILE = 32  # texts at least, so that questions one by one make few files
_TELL = 60.0  # seconds spent on encoding between words of it


class Vectors:
    """Of one frozen encoder.

    Args:
        folder: where they are kept; it need not be there, and others may write to it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._kept: dict[TaskText, Tensor] = {}
        self._places: dict[bytes, tuple[Any, int]] = {}  # memory-mapped rows, and which of them
        self._read_files: set[str] = set()
        self._new: list[tuple[bytes, Tensor]] = []
        self._writes = True
        self._computed, self._seconds = 0, 0.0  # the latter since it was last told
        atexit.register(self.write)

    def of(self, texts: Sequence[TaskText], compute: Callable[[TaskText], Tensor]) -> Tensor:
        """(T, d) float32 on the CPU.

        Args:
            compute: gives the vector of a text that nothing is known of, (d,).
        """
        missing = [text for text in dict.fromkeys(texts) if text not in self._kept]
        if missing:
            self._read()
        for text in missing:
            place = self._places.get(_key(text))
            self._kept[text] = self._add(text, compute) if place is None else _row(*place)
        if len(self._new) >= _A_FILE:
            self.write()
        rows = torch.stack([self._kept[text] for text in texts])
        drop_oldest(self._kept)
        return rows

    def write(self) -> None:
        """Put on disk what is new. A disk that takes nothing is told of once, and left alone."""
        if not (self._new and self._writes):
            return
        rows = np.zeros(len(self._new), _layout(len(self._new[0][1])))
        rows["key"] = [np.frombuffer(key, np.uint8) for key, _ in self._new]
        rows["vector"] = [vector.numpy() for _, vector in self._new]
        content = BytesIO()
        np.save(content, rows)
        path = self.folder / f"{_hash(content.getvalue())}.npy"
        try:
            with writing(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
            write_file(path, lambda partial: partial.write_bytes(content.getvalue()))
        except CannotWrite as error:
            self._writes = False
            print(f"the encoder's vectors are not kept on disk: {error}", file=sys.stderr)
        self._read_files.add(path.name)
        self._new.clear()

    def _add(self, text: TaskText, compute: Callable[[TaskText], Tensor]) -> Tensor:
        began = time.perf_counter()
        vector = compute(text).cpu()
        self._computed += 1
        self._seconds += time.perf_counter() - began
        if self._writes:
            self._new.append((_key(text), vector))
        if self._seconds > _TELL:
            print(f"frozen encoder: {self._computed:,} texts encoded", file=sys.stderr)
            self._seconds = 0.0
        return vector

    def _read(self) -> None:
        """Find what other processes, now or earlier, have put there."""
        try:
            new = [p for p in self.folder.glob("*.npy") if p.name not in self._read_files]
        except OSError:  # it is not to be read, so everything is computed
            return
        for path in new:
            self._read_files.add(path.name)
            for row, key in enumerate(rows := _whole(path)):
                self._places[key["key"].tobytes()] = rows, row


@cache
def vectors_in(folder: Path) -> Vectors:
    """One a process, which engine, learner and further runs share."""
    return Vectors(folder)


def _layout(components: int) -> np.dtype:
    return np.dtype([("key", np.uint8, 16), ("vector", "<f4", components)])


def _whole(path: Path) -> Any:
    """A file's rows, memory-mapped; none where it is not what was written."""
    try:
        if _hash(path.read_bytes()) == path.stem:
            return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):
        pass
    return ()


def _row(rows: Any, row: int) -> Tensor:
    return torch.from_numpy(np.array(rows[row]["vector"]))


def _key(text: TaskText) -> bytes:
    return hashlib.blake2b(repr(text).encode(), digest_size=16).digest()


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
