"""Folders of models that others made: weights in safetensors alone."""

from __future__ import annotations

import os
from pathlib import Path

from dro_rl.errors import UserError
from dro_rl.jsonlines import located

_PICKLED = ("pytorch_model*.bin", "consolidated*.pth", "*.ckpt", "*.pkl")


def refuse_pickled(folder: Path, name: str) -> None:
    """Refuse a folder whose weights are pickles alone: whoever made a pickle decides what reading
    it does.

    Raises:
        UserError: names the model, the file and what to do.
    """
    pickled = next((path for kind in _PICKLED for path in sorted(folder.glob(kind))), None)
    if pickled is not None and not any(folder.glob("*.safetensors")):
        raise UserError(
            f"{name}: its weights are a pickle ({pickled.name}), which can run code when it is "
            "read: take a model with weights in safetensors, or, if you trust it, convert it with "
            "transformers: AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(OTHER)"
        )


def local_model(name: str, setting: str) -> Path:
    """The folder of a model: itself, or the hub's snapshot, which is fetched where it is not here.

    Args:
        setting: of the recipe, for messages.
    Raises:
        UserError: it is neither a folder nor on the hub, or its weights are pickles.
    """
    folder = located(name)
    if os.path.isdir(folder):  # Path's own raises at long names
        for place in (folder, *filter(os.path.isdir, folder.iterdir())):  # a module each
            refuse_pickled(place, f"{setting}: {name}")
        return folder.absolute()
    from huggingface_hub import snapshot_download

    try:
        unneeded = ["onnx/*", "openvino/*", "*.onnx", "*.h5", "*.msgpack", "*.ot"]
        unsafe = ["*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.py"]
        found = Path(snapshot_download(name, ignore_patterns=[*unneeded, *unsafe]))
    except Exception as error:  # the hub's client raises a dozen unrelated kinds
        raise UserError(
            f"{setting}: {name} is neither a folder nor a model that the hub gave: {error}"
        ) from error
    if not any(found.rglob("*.safetensors")):
        raise UserError(
            f"{setting}: {name} has no weights in safetensors, and others, which can run code when "
            "they are read, are not taken: choose another model"
        )
    return found
