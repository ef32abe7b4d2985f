"""Where a retriever's model lies, and what stands for its content in an index's name."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from dro_rl.errors import UserError
from dro_rl.jsonlines import located
from dro_rl.model_folders import refuse_pickled


def local_model(name: str) -> Path:
    """The folder of a model: itself, or the hub's snapshot, which is fetched where it is not here.

    Raises:
        UserError: it is neither a folder nor on the hub.
    """
    folder = located(name)
    if os.path.isdir(folder):  # Path's own raises at long names
        for place in (folder, *filter(os.path.isdir, folder.iterdir())):  # a module each
            refuse_pickled(place, f"retrieval.model: {name}")
        return folder.absolute()
    from huggingface_hub import snapshot_download

    try:
        unneeded = ["onnx/*", "openvino/*", "*.onnx", "*.h5", "*.msgpack", "*.ot"]
        unsafe = ["*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.py"]
        found = Path(snapshot_download(name, ignore_patterns=[*unneeded, *unsafe]))
    except Exception as error:  # the hub's client raises a dozen unrelated kinds
        raise UserError(
            f"retrieval.model: {name} is neither a folder nor a model that the hub gave: {error}"
        ) from error
    if not any(found.rglob("*.safetensors")):
        raise UserError(
            f"retrieval.model: {name} has no weights in safetensors, and others, which can run "
            "code when they are read, are not taken: choose another model"
        )
    return found


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
