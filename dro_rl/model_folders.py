"""Folders of models that others made: weights in safetensors alone."""

from __future__ import annotations

from pathlib import Path

from dro_rl.errors import UserError

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
