"""Where a retriever's model lies, and what stands for its content in an index's name."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from dro_rl.errors import UserError
from dro_rl.jsonlines import located


def local_model(name: str) -> Path:
    """The folder of a model: itself, or the hub's snapshot, which is fetched where it is not here.

    Raises:
        UserError: it is neither a folder nor on the hub.
    """
    folder = located(name)
    if os.path.isdir(folder):  # Path's own raises at long names
        return folder.absolute()
    from huggingface_hub import snapshot_download

    try:
        unneeded = ["onnx/*", "openvino/*", "*.onnx", "*.h5", "*.msgpack", "*.ot"]
        return Path(snapshot_download(name, ignore_patterns=unneeded))
    except Exception as error:  # the hub's client raises a dozen unrelated kinds
        raise UserError(
            f"retrieval.model: {name} is neither a folder nor a model that the hub gave: {error}"
        ) from error


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
