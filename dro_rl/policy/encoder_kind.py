"""Which kind of encoder a folder holds, by its configuration alone. Imports no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from dro_rl.errors import UserError

Kind = Literal["bi-encoder", "cross-encoder"]


def kind_of(folder: Path, name: str) -> Kind:
    """As sentence-transformers would load it.

    Args:
        name: the folder's or its hub name, for messages.
    Raises:
        UserError: neither kind, or a file of it is not JSON.
    """
    told = _json(folder / "config_sentence_transformers.json", name, {})
    if told.get("model_type") == "CrossEncoder":
        return "cross-encoder"
    modules = _json(folder / "modules.json", name, None)
    if modules is None:
        architectures = _json(folder / "config.json", name, {}).get("architectures") or [""]
        if str(architectures[0]).endswith("ForSequenceClassification"):
            return "cross-encoder"
    types = [str(module.get("type")) for module in modules or []]
    if any("Pooling" in t for t in types) or (types and not types[0].endswith(".Transformer")):
        return "bi-encoder"
    raise UserError(
        f"selector.model: {name} has no pooling, so it makes no vector of a text: give a folder "
        "that sentence-transformers saved, with modules.json and a Pooling among them, or a "
        "cross-encoder's"
    )


def _json(path: Path, name: str, default: Any) -> Any:
    try:
        return json.loads(path.read_bytes()) if path.is_file() else default
    except ValueError as error:
        raise UserError(f"selector.model: {name}: its {path.name} is not JSON ({error})") from error
