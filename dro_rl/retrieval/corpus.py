"""The corpus to search, on disk and memory-mapped: only passages that are asked for are read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from dro_rl.errors import UserError
from dro_rl.jsonlines import located
from dro_rl.records import Document, Example
from dro_rl.retrieval.folders import check_folder, damaged, digest, made_folder, scratch
from dro_rl.retrieval.passages import is_dataset, open_dataset, read_dataset, read_passages
from dro_rl.sections.retrieval import CorpusSection

_FILE = "passages.arrow"
_BLOCK = 4096  # passages a record batch: what is mapped and looked through at once
_SCHEMA = pa.schema([("title", pa.string()), ("text", pa.string())])
_FORMAT = 1  # raise it when the layout of the folder changes


class Corpus:
    """Distinct passages, numbered from 0, in a folder that is named by the hash of all of them."""

    def __init__(self, folder: Path) -> None:
        """Open a folder that `open_corpus` made.

        Raises:
            UserError: the folder is not there or is damaged.
        """
        self.folder = folder
        self.name = folder.name
        self.passages = folder / _FILE
        check_folder(folder, {"format": _FORMAT})
        try:
            # Memory-mapped: the reader holds the places of the blocks, and nothing of them.
            self._reader = pa.ipc.open_file(pa.memory_map(str(self.passages)))
        except (OSError, pa.ArrowInvalid) as error:
            raise damaged(folder, f"{_FILE}: {error}") from error
        blocks = self._reader.num_record_batches
        last = self._reader.get_batch(blocks - 1).num_rows
        self._length = (blocks - 1) * _BLOCK + last

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, row: int) -> Document:
        block, place = divmod(row, _BLOCK)
        titles, texts = self._reader.get_batch(block).columns
        return Document(titles[place].as_py(), texts[place].as_py())

    def blocks(self) -> Iterator[list[Document]]:
        """All passages in order, some thousands at a time."""
        for block in range(self._reader.num_record_batches):
            titles, texts = self._reader.get_batch(block).columns
            yield list(map(Document, titles.to_pylist(), texts.to_pylist()))


def open_corpus(section: CorpusSection, examples: Iterable[Example]) -> Corpus:
    """The corpus of `corpus_path`, or else the documents of all questions.

    A file that has been read once is not read again while its size and time stay.

    Raises:
        UserError: it is empty or unreadable, or `cache_dir` cannot be written.
    """
    cache = located(section.cache_dir).absolute()
    if section.corpus_path is None:
        return _write(cache, pool(examples), "pooled from the data's questions")
    path = section.corpus_path
    if is_dataset(path):
        dataset = open_dataset(path, section.corpus_configuration, section.corpus_split)
        return _known(cache, dataset._fingerprint, lambda: read_dataset(dataset, path), path)
    place = located(path)
    try:
        stat = os.stat(place)
        stamp = [os.path.realpath(place), stat.st_size, stat.st_mtime_ns]
    except OSError:
        stamp = None  # reading it will say what is wrong
    return _known(cache, stamp, lambda: read_passages(path), path)


def pool(examples: Iterable[Example]) -> Iterator[Document]:
    """The documents of all questions, each as often as it occurs; none is gold, for that is a
    matter between a document and a question."""
    for example in examples:
        for document in example.candidates:
            yield Document(document.title, document.text)


def read_documents(path: str) -> Sequence[Document]:
    """The distinct passages of a file that fits the memory.

    Raises:
        UserError: as `read_passages`.
    """
    return list(dict.fromkeys(read_passages(path)))


def _known(cache: Path, stamp: Any, read: Any, source: str) -> Corpus:
    """The corpus that a source of this stamp gave before; or else read it."""
    note = cache / "sources" / f"{digest([_FORMAT, stamp])}.json"
    folder = _noted(cache, note)
    if folder is not None:
        return Corpus(folder)
    corpus = _write(cache, read(), source)
    note.parent.mkdir(exist_ok=True)
    beside = note.with_suffix(f".{os.getpid()}")
    beside.write_text(json.dumps(corpus.name))
    os.replace(beside, note)
    return corpus


def _noted(cache: Path, note: Path) -> Path | None:
    """The folder that a note names, if both are there and whole."""
    try:
        name = json.loads(note.read_text())
    except (OSError, ValueError):
        return None
    folder = cache / name if name and isinstance(name, str) else None
    return folder if folder is not None and folder.is_dir() else None


def _write(cache: Path, passages: Iterable[Document], source: str) -> Corpus:
    """Write distinct passages to a folder named by their hash.

    What has been seen is kept as a number of 8 bytes a passage: with Python's set some 1.5 GB for
    21 million.
    """
    rest = iter(passages)
    first = next(rest, None)  # before anything is written
    if first is None:
        raise UserError(
            f"the corpus is empty: there are no documents to search ({source}): set "
            "retrieval.corpus_path to a file of passages"
        )
    seen: set[int] = set()
    content = hashlib.sha256()

    def distinct() -> Iterator[Document]:
        for passage in chain([first], rest):
            key = f"{len(passage.title)} {passage.title}{passage.text}".encode()
            own = hashlib.blake2b(key, digest_size=16).digest()
            short = int.from_bytes(own[:8])
            if short not in seen:
                seen.add(short)
                content.update(own)
                yield passage

    # The name is known when all is written, so it is written beside and then given its name.
    with scratch(cache) as building:
        _write_arrow(building / _FILE, distinct())

        def move(folder: Path) -> None:
            os.replace(building / _FILE, folder / _FILE)

        makers = {"format": _FORMAT, "content": content.hexdigest(), "passages": len(seen)}
        return Corpus(made_folder(cache, "corpus", makers, move))


def _write_arrow(path: Path, passages: Iterable[Document]) -> None:
    """Blocks of `_BLOCK` passages, but for the last; at least one."""
    rest = iter(passages)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, _SCHEMA) as writer:
        while block := list(islice(rest, _BLOCK)):
            titles, texts = [d.title for d in block], [d.text for d in block]
            writer.write_batch(pa.record_batch([titles, texts], schema=_SCHEMA))
