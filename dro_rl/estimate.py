"""What a recipe will do and need, worked out from the recipe alone: no torch, no model loaded."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path

from dro_rl.algorithm_sections import GrpoAlgorithm
from dro_rl.policy_sections import PolicySection
from dro_rl.recipe import Recipe
from dro_rl.reward_sections import in_words as reward_in_words

_GIB = 2**30
_OPTIMISER_BYTES = 16  # float32 weight, gradient and AdamW's two moments
_ENGINE_GIB = 1.7  # a vLLM process before weights and cache, measured on a CPU
_TORCH_GIB = 0.6  # a torch and transformers process before weights


def in_words(recipe: Recipe) -> list[str]:
    """The derived sizes, a sentence each."""
    training, algorithm = recipe.training, recipe.algorithm
    questions = training.questions_per_iteration
    lines = [
        f"Each of {training.iterations} iterations takes "
        + ("all training questions" if questions == "all" else f"{questions} questions")
        + f", draws {algorithm.samples} selections of up to {recipe.selector.documents} of "
        f"{recipe.retrieval.candidates} documents for each, and weighs them with "
        f"{algorithm.kind} by {reward_in_words(recipe.reward)}.",
        f"The M-step passes over them {_times(training.epochs)}; an optimiser step takes "
        f"{training.batch_size} questions ({training.batch_size * algorithm.samples} selections), "
        f"equal ones computed once, as many questions in a forward pass as make up "
        f"{training.tokens_per_microbatch} tokens.",
    ]
    if questions != "all":
        steps = -(-questions // training.batch_size) * training.epochs
        lines.append(
            f"That is {steps} optimiser steps an iteration, {steps * training.iterations} in all, "
            f"and {questions * algorithm.samples * training.iterations} selections drawn."
        )
    lines.append(f"It trains: {', '.join(algorithm.train)}.")
    return lines


def memory(recipe: Recipe) -> list[tuple[str, str, str]]:
    """(process, GiB, what it holds) for each process; activations come on top."""
    rows = []
    for name, section in (("selector", recipe.selector), ("generator", recipe.generator)):
        count = parameters(section)
        if count is None:
            rows.append((name, "unknown", f"the size of {section.model} is not known from here"))
            continue
        width = 2 if section.dtype == "bfloat16" else 4
        weights = count * width / _GIB
        engine = _ENGINE_GIB + weights + recipe.rollout.cpu_cache_gib
        copies = recipe.rollout.workers if name == "selector" else 1
        what = "process, weights, key-value cache; on a GPU gpu_memory_utilization of it"
        rows.append((f"{copies} x {name} engine", f"{engine:.1f}", what))
        if name == "generator":
            copies = recipe.cluster.reward_workers
            held = _TORCH_GIB + weights
            rows.append((f"{copies} x reward service", f"{held:.1f}", "process, weights"))
        if name in recipe.algorithm.train:
            if section.lora:
                held, what = weights, "process, frozen weights, adapters"
            else:
                held, what = count * _OPTIMISER_BYTES / _GIB, "process, weights, AdamW, gradients"
            algorithm = recipe.algorithm
            restrained = isinstance(algorithm, GrpoAlgorithm) and algorithm.kl > 0
            if name == "selector" and restrained and not section.lora:
                held, what = held + weights, what + ", frozen reference"
            rows.append((f"1 x {name} learner", f"{_TORCH_GIB + held:.1f}", what))
    return rows


def parameters(section: PolicySection) -> int | None:
    """How many parameters a policy has, where the recipe or the model's folder says so."""
    folder = Path(section.model).expanduser()
    if section.model.startswith("builtin/"):
        folder = Path(__file__).parent / section.model
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    if files:
        try:
            return sum(_stored_parameters(f) for f in files)
        except (OSError, ValueError, struct.error):
            return None  # a broken file, or a pointer of git-lfs: training says so by name
    if section.init == "scratch":
        s = section.scratch
        layer = 4 * s.hidden_size**2 + 3 * s.hidden_size * s.intermediate_size
        return s.vocabulary * s.hidden_size + s.layers * layer
    name = section.init or section.model
    named = re.search(r"(\d+(?:\.\d+)?)[bB](?![a-z])", name)  # Qwen2.5-1.5B-Instruct
    return int(float(named[1]) * 1e9) if named else None


def _stored_parameters(path: Path) -> int:
    """Read off the header of a safetensors file: 8 bytes of length, then JSON."""
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        if size > path.stat().st_size:
            raise ValueError(f"{path}: not a safetensors file")
        header = json.loads(file.read(size))
    total = 0
    for name, tensor in header.items():
        if name != "__metadata__":
            size = 1
            for extent in tensor["shape"]:
                size *= extent
            total += size
    return total


def _times(n: int) -> str:
    return "once" if n == 1 else f"{n} times"
