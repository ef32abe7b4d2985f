"""Bytes that the processes of a selector that is a sentence encoder hold at most.

As footprint.py counts them for causal LMs: weights, gradients and AdamW's moments, and what
autograd keeps of the layers of transformers' BERT.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dro_rl.errors import UserError
from dro_rl.estimate.footprint import GIB, LIBRARIES, PARTS, Footprint
from dro_rl.estimate.shape import BROKEN, model_folder, stored_parameters
from dro_rl.policy.encoder_kind import kind_of
from dro_rl.policy.room import room_for_hidden_states
from dro_rl.recipe import Recipe
from dro_rl.sections.encoder import EncoderSelector

_FLOAT32 = 4
_TOGETHER = 32  # texts of an engine's forward pass, see dro_rl.policy.encoder

# What the C library's heap takes for a megabyte of activations (see footprint.py), fitted to
# learners of all-MiniLM-L6-v2. peft's sums come and go between blocks that stay.
_HEAP, _HEAP_LORA = 1.3, 1.8
# oneDNN's kernels for bfloat16 on a CPU [GiB]: it keeps 1,024, one for each shape of a product, and
# texts come in as many shapes as they have lengths.
_KERNELS = 0.45


@dataclass(frozen=True, slots=True)
class EncoderShape:
    """A transformer of `layers`, the most tokens of a text that the encoder reads, and whether
    such a text is a question with a document: whether it is a cross-encoder."""

    layers: int
    hidden: int
    intermediate: int
    positions: int
    parameters: int
    pairs: bool = False

    @property
    def layer(self) -> int:
        """Parameters of one, norms left aside."""
        return 4 * self.hidden**2 + 2 * self.hidden * self.intermediate

    def learned(self, section: EncoderSelector) -> int:
        """Parameters that learn."""
        h = self.hidden
        if section.lora:  # four square maps a layer, and one up and one down
            return self.layers * section.lora.rank * (4 * 2 * h + 2 * (h + self.intermediate))
        parts = {"head": h**2, "last_layers": (section.layers or 0) * self.layer}
        return parts.get(section.train, self.parameters)


def shape_of(section: EncoderSelector) -> EncoderShape | None:
    """The shape of an encoder, None where its files are not here or say nothing of it."""
    for name in filter(None, (section.model, section.init)):
        folder = model_folder(name)
        if folder is None:
            continue
        try:
            config = next(c for c in map(_json, sorted(folder.rglob("config.json"))) if c)
            return EncoderShape(
                layers=int(_first(config, "num_hidden_layers", "n_layers", "num_layers")),
                hidden=int(_first(config, "hidden_size", "dim", "d_model")),
                intermediate=int(_first(config, "intermediate_size", "hidden_dim", "d_ff")),
                positions=int(_limit(folder) or config["max_position_embeddings"]),
                parameters=sum(map(stored_parameters, folder.rglob("*.safetensors"))),
                pairs=kind_of(folder, name) == "cross-encoder",
            )
        except (*BROKEN, StopIteration, UserError):
            continue
    return None


def largest(recipe: Recipe, section: EncoderSelector, shape: EncoderShape) -> int:
    """Tokens of a learner's largest forward pass: of texts that are as long as can be."""
    if section.train == "head":
        return 0  # it learns from vectors
    length = min(section.max_length or shape.positions, shape.positions)
    candidates, later = recipe.retrieval.candidates, section.documents - 1
    # A conditional one reads the question anew with what was picked, of every selection; a
    # cross-encoder each of these with every candidate, which a bi-encoder reads apart.
    states = 1 + later * recipe.algorithm.samples if section.conditional else 1
    question = (candidates * states if shape.pairs else candidates + states) * length
    batch = recipe.training.batch_size * question
    return min(batch, max(recipe.training.tokens_per_microbatch, question))


def processes(
    recipe: Recipe, section: EncoderSelector, shape: EncoderShape, device: str
) -> Iterator[Footprint]:
    """Those of the encoder, and the reward service, which has no generator to hold."""
    for _ in range(recipe.rollout.workers):
        yield engine(section, shape, device)
    for _ in range(recipe.cluster.reward_workers):
        yield _of("reward service", device)
    if "selector" in recipe.algorithm.train:
        yield learner(recipe, section, shape, device)


def engine(section: EncoderSelector, shape: EncoderShape, device: str) -> Footprint:
    """It scores, and keeps nothing for a backward pass."""
    together = 1 if section.train == "head" else _TOGETHER
    length = min(section.max_length or shape.positions, shape.positions)
    at_once = _FLOAT32 * (2 * shape.intermediate + 4 * shape.hidden)
    return _of(
        "selector engine",
        device,
        process=_kernels(section, device),
        weights=shape.parameters * _FLOAT32,
        activations=together * length * at_once,
        cache=most_cached(section, shape, device),
    )


def learner(
    recipe: Recipe, section: EncoderSelector, shape: EncoderShape, device: str
) -> Footprint:
    """At the end of a step's last forward pass."""
    learned = shape.learned(section)
    restrained = recipe.algorithm.restrained and not section.lora
    weights = shape.parameters * (2 if restrained else 1)
    weights += learned if section.lora or section.train == "head" else 0
    heap = _HEAP_LORA if section.lora else _HEAP
    return _of(
        "selector learner",
        device,
        process=_kernels(section, device),
        weights=weights * _FLOAT32,
        gradients=learned * _FLOAT32,
        optimiser=2 * learned * _FLOAT32,
        activations=largest(recipe, section, shape)
        * ((section.layers or shape.layers) * kept(shape, section.dtype) + _passing(shape))
        * (heap if device == "cpu" else 1.0),
        cache=most_cached(section, shape, device),
    )


def most_cached(section: EncoderSelector, shape: EncoderShape, device: str) -> float:
    """Bytes that a process keeps at most of what frozen layers make of texts, see
    dro_rl.policy.lower; with few texts it is less."""
    below = shape.layers - (section.layers or shape.layers)
    return room_for_hidden_states() if device == "cpu" and below > 0 else 0.0


def kept(shape: EncoderShape, dtype: str) -> int:
    """Bytes a token that autograd keeps of one layer: its input, queries, keys and values,
    attention's output, what both norms are given and the first gives, and the MLP's two halves.

    In bfloat16 queries, keys and values each have their own cast of the input, and what norms are
    given stays float32. A pass's casts of the weights, some hundredths of it, are left aside.
    """
    if dtype == "bfloat16":
        return 24 * shape.hidden + 4 * shape.intermediate
    return _FLOAT32 * (8 * shape.hidden + 2 * shape.intermediate)


def _passing(shape: EncoderShape) -> int:
    """Bytes a token of one layer's gradients."""
    return _FLOAT32 * 2 * (shape.intermediate + shape.hidden)


def _of(role: str, device: str, **sizes: float) -> Footprint:
    sizes["process"] = sizes.get("process", 0.0) + LIBRARIES[device] * GIB
    return Footprint(role, "selector", {name: sizes.get(name, 0.0) / GIB for name in PARTS})


def _kernels(section: EncoderSelector, device: str) -> float:
    return _KERNELS * GIB if section.dtype == "bfloat16" and device == "cpu" else 0.0


def _json(path: Path) -> Any:
    """None of a module's configuration that is no transformer's."""
    config = json.loads(path.read_bytes())
    return config if "model_type" in config else None


def _limit(folder: Path) -> int | None:
    path = folder / "sentence_bert_config.json"
    return json.loads(path.read_bytes()).get("max_seq_length") if path.is_file() else None


def _first(config: dict[str, Any], *names: str) -> Any:
    return next(config[name] for name in names if name in config)
