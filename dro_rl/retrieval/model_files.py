"""Where a retriever's model lies, and what stands for its content in an index's name."""

from __future__ import annotations

import hashlib
from pathlib import Path

from dro_rl import model_folders


def local_model(name: str) -> Path:
    """The folder of a model: itself, or the hub's snapshot, which is fetched where it is not here.

    Raises:
        UserError: it is neither a folder nor on the hub.
    """
    return model_folders.local_model(name, "retrieval.model")


def model_identity(folder: Path) -> str:
    """What stands for a model's content: the commit of a hub's snapshot, else its files' hash."""
    if folder.parent.name == "snapshots":
        return f"{folder.parent.parent.name}/{folder.name}"
    content = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        content.update(str(path.relative_to(folder)).encode())
        with path.open("rb") as file:
            content.update(hashlib.file_digest(file, "sha256").digest())
    return content.hexdigest()[:32]
