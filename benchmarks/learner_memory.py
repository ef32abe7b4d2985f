"""What a learner grows by, against the estimate: many shapes and settings, without the rest
of a run.

    python benchmarks/learner_memory.py

Two optimiser steps of two forward passes each on made-up selections, in a process of its own that
is forked before anything is computed, so that what the libraries take is in neither figure. Prompts
are as long as `max_length` says. Writes results/learner_memory.json and .md beside this file; exits
with 1 where an estimate is off by more than a fifth.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.timing import prepare, table, write_results  # noqa: E402

prepare()

import torch  # noqa: E402

from benchmarks.memory import (  # noqa: E402
    ALLOWED,
    BFLOAT16,
    CHECKPOINTED,
    DOCUMENTS,
    LORA,
    SAMPLES,
    SELECTED,
    in_own_process,
    peak,
)
from benchmarks.world import made_up_rollouts, make_example, save_model  # noqa: E402
from dro_rl.estimate import footprint  # noqa: E402
from dro_rl.estimate.shape import shape_of  # noqa: E402
from dro_rl.learner import Learner  # noqa: E402
from dro_rl.policy import causal_lm  # noqa: E402
from dro_rl.recipe import Recipe  # noqa: E402
from dro_rl.records import WeightedRollout  # noqa: E402


@dataclass(frozen=True)
class Case:
    """A size of `benchmarks.shapes`, settings of the policy, questions of a forward pass, words of
    a document."""

    size: str
    settings: dict[str, Any]
    questions: int
    words: int


CASES = {
    "5M": Case("5M", {}, 2, 40),
    "5M, bfloat16": Case("5M", BFLOAT16, 2, 40),
    "100M, checkpointing": Case("100M", CHECKPOINTED, 1, 10),
    "20M, grouped queries": Case("20M", {}, 1, 30),
    "20M, LoRA": Case("20M", LORA, 1, 30),
    "20M, bfloat16, LoRA": Case("20M", {**BFLOAT16, **LORA}, 1, 30),
    "50M, bfloat16, LoRA, checkpointing": Case("50M", {**BFLOAT16, **LORA, **CHECKPOINTED}, 1, 20),
}


def make_recipe(case: Case, folder: Path) -> tuple[Recipe, list[WeightedRollout]]:
    """Of the model in `folder`, and a batch of two forward passes."""
    examples = [make_example(n, DOCUMENTS, (case.words,) * 2) for n in range(2 * case.questions)]

    def recipe(max_length: int, tokens: int) -> Recipe:
        policy = {"model": str(folder), "dtype": "float32", **case.settings}
        policy |= {"max_length": max_length, "max_new_tokens": 8, "learning_rate": 1e-5}
        return Recipe.model_validate(
            {
                "data": {"kind": "jsonl", "path": "unused.jsonl"},
                "retrieval": {"kind": "given", "candidates": DOCUMENTS},
                "selector": {**policy, "documents": SELECTED},
                "generator": policy,
                "algorithm": {"samples": SAMPLES},
                "training": {"batch_size": len(examples), "tokens_per_microbatch": tokens},
            }
        )

    wide = recipe(4096, 1)
    writer = causal_lm.prompt_writer(wide.selector, wide.selector.model)
    prompts = [len(writer.select(e.question, e.candidates, SELECTED).token_ids) for e in examples]
    question = max(prompts) + SAMPLES * 8
    fitting = recipe(max(prompts) + 8, case.questions * question)
    rollouts = made_up_rollouts(fitting, examples)
    weights = (1 / SAMPLES,) * SAMPLES
    return fitting, [WeightedRollout(r, weights, weights) for r in rollouts]


def measure(case: Case) -> tuple[float, float]:
    """Estimated and measured GiB."""
    with tempfile.TemporaryDirectory() as name:
        folder, tiny = Path(name), replace(case, size="tiny", words=2)
        for size, under in ((case.size, "own"), (tiny.size, "tiny")):
            in_own_process(save_model, folder / under, size, case.settings.get("dtype", "float32"))
        return in_own_process(_grow, case, tiny, folder)


def _grow(case: Case, tiny: Case, folder: Path) -> tuple[float, float]:
    """A tiny model first, for what libraries load when they are first used."""
    torch.set_num_threads(1)
    small, little = make_recipe(tiny, folder / "tiny")
    Learner(small, "selector", small.selector.model, 10, 1e-5).step(little)
    recipe, batch = make_recipe(case, folder / "own")
    before = peak()
    learner = Learner(recipe, "selector", recipe.selector.model, 10, 1e-5)
    for _ in range(2):
        learner.step(batch)
    measured = peak() - before
    shape = shape_of(recipe.selector)
    assert shape is not None
    parts = footprint.learner(recipe, "selector", shape, "cpu").parts
    return sum(parts.values()) - footprint.LIBRARIES["cpu"], measured


def write(cells: dict[str, tuple[float, float]], errors: dict[str, float]) -> None:
    rows = [
        [name, f"{e:.2f}", f"{m:.2f}", f"{errors[name]:+.0%}"] for name, (e, m) in cells.items()
    ]
    mean = sum(map(abs, errors.values())) / len(errors)
    write_results(
        "learner_memory",
        {"cells": cells},
        [
            f"What a selector's learner holds beyond the libraries, two steps of two forward "
            f"passes; {mean:.1%} off on average (allowed: {ALLOWED:.0%}):",
            table(["", "estimated [GiB]", "measured [GiB]", "error"], rows),
        ],
        "one process a case",
    )


def main() -> None:
    cells, errors = {}, {}
    for name, case in CASES.items():
        estimated, measured = cells[name] = measure(case)
        errors[name] = estimated / measured - 1
        in_own_process(write, cells, errors)  # what there is, should the next one fail
    if max(map(abs, errors.values())) > ALLOWED:
        sys.exit(1)


if __name__ == "__main__":
    main()
