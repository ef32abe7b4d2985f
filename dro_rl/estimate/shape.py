"""The shape of a policy's model, from its folder, the hub's cache, or the size in its name: no
torch, nothing loaded, nothing downloaded."""

from __future__ import annotations

import json
import math
import os
import re
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dro_rl.sections.lora import Lora
from dro_rl.sections.policy import PolicySection, Scratch

_BUILTIN = Path(__file__).resolve().parents[1]
BROKEN = (OSError, ValueError, TypeError, KeyError, AttributeError, struct.error)
"""What reading a damaged model raises."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder of `layers`, each attention and a gated MLP, as Llama, Qwen and Mistral have.

    `heads` and `kv_heads` times `head_dim` are the widths of queries and of keys; `count` is the
    number of parameters that the files hold, None where it follows from the rest; `assumed` names
    the model whose shape was taken because the policy's own is not at hand.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool
    count: int | None = None
    assumed: str = ""

    @property
    def query(self) -> int:
        return self.heads * self.head_dim

    @property
    def key(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(in, out) of a layer's linear maps."""
        h, i = self.hidden, self.intermediate
        return {
            "q_proj": (h, self.query),
            "k_proj": (h, self.key),
            "v_proj": (h, self.key),
            "o_proj": (self.query, h),
            "gate_proj": (h, i),
            "up_proj": (h, i),
            "down_proj": (i, h),
        }

    @property
    def body(self) -> int:
        """Parameters that every token meets."""
        return self.layers * sum(a * b for a, b in self.linears.values())

    @property
    def parameters(self) -> int:
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return self.count or self.body + embeddings + (2 * self.layers + 1) * self.hidden

    @property
    def gathered(self) -> int:
        """Parameters that a rank of several holds whole at once: both embeddings, and of the layers
        the one that computes and the next."""
        return self.parameters - self.body + 2 * self.body // self.layers

    def adapters(self, lora: Lora) -> int:
        """Parameters of LoRA's factors."""
        named = lora.target_modules
        used = [v for k, v in self.linears.items() if isinstance(named, str) or k in named]
        return self.layers * lora.rank * sum(a + b for a, b in used)


# Of the models' own configuration files. Where a name gives a size alone, the nearest is taken.
_PUBLIC = {
    "Qwen2.5-0.5B": Shape(24, 896, 14, 2, 64, 4864, 151936, True),
    "Llama-3.2-1B": Shape(16, 2048, 32, 8, 64, 8192, 128256, True),
    "Qwen2.5-1.5B": Shape(28, 1536, 12, 2, 128, 8960, 151936, True),
    "Qwen2.5-3B": Shape(36, 2048, 16, 2, 128, 11008, 151936, True),
    "Qwen2.5-7B": Shape(28, 3584, 28, 4, 128, 18944, 152064, False),
    "Llama-3-8B": Shape(32, 4096, 32, 8, 128, 14336, 128256, False),
    "Qwen2.5-14B": Shape(48, 5120, 40, 8, 128, 13824, 152064, False),
    "Qwen2.5-32B": Shape(64, 5120, 40, 8, 128, 27648, 152064, False),
    "Llama-3-70B": Shape(80, 8192, 64, 8, 128, 28672, 128256, False),
}


def shape_of(section: PolicySection) -> Shape | None:
    """The shape of a policy's model, None where nothing says it."""
    names = [section.model, *([section.init] if section.init else [])]
    for name in names:
        if name == "scratch":
            return _from_scratch(section.scratch)
        folder = model_folder(name)
        if folder is not None and (shape := _from_folder(folder)) is not None:
            return shape
    return _from_name(names[-1])


def model_folder(name: str) -> Path | None:
    """Where a model's files are on this machine."""
    if name.startswith("builtin/"):
        return _BUILTIN / name
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    snapshots = home / "hub" / f"models--{name.replace('/', '--')}" / "snapshots"
    return next(iter(sorted(snapshots.glob("*/"))), None)


def _from_folder(folder: Path) -> Shape | None:
    """None where the configuration is not that of such a decoder; a broken file is none, too:
    training says so by name."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
        shape = _from_config(config.get("text_config", config))
        files = sorted(folder.glob("*.safetensors"))
        count = sum(map(stored_parameters, files)) if files else None
    except BROKEN:
        return None
    return replace(shape, count=count)


def _from_config(config: dict[str, Any]) -> Shape:
    heads = int(config["num_attention_heads"])
    return Shape(
        layers=int(config["num_hidden_layers"]),
        hidden=int(config["hidden_size"]),
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or config["hidden_size"] // heads),
        intermediate=int(config["intermediate_size"]),
        vocabulary=int(config["vocab_size"]),
        tied=bool(config.get("tie_word_embeddings", False)),
    )


def _from_scratch(s: Scratch) -> Shape:
    head = s.hidden_size // s.heads
    return Shape(
        s.layers, s.hidden_size, s.heads, s.heads, head, s.intermediate_size, s.vocabulary, True
    )


def _from_name(name: str) -> Shape | None:
    """The public model of the nearest size: "Qwen2.5-1.5B-Instruct" says 1.5."""
    named = re.search(r"(\d+(?:\.\d+)?)[bB](?![a-z])", name)
    if not named or float(named[1]) == 0:
        return None
    wanted = float(named[1]) * 1e9

    def apart(model: str) -> float:
        return abs(math.log(_PUBLIC[model].parameters / wanted))

    nearest = min(_PUBLIC, key=apart)
    shape = replace(_PUBLIC[nearest], assumed=nearest)
    return shape if apart(nearest) < 0.15 else replace(shape, count=round(wanted))


def stored_parameters(path: Path) -> int:
    """Read off the header of a safetensors file: 8 bytes of length, then JSON."""
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        if size > path.stat().st_size:
            raise ValueError(f"{path}: not a safetensors file")
        header = json.loads(file.read(size))
    return sum(math.prod(t["shape"]) for n, t in header.items() if n != "__metadata__")
