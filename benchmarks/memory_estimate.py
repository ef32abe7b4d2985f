"""What `dro-rl check` estimates of each process's memory, against what runs measured.

    python benchmarks/memory_estimate.py [CASE ...]

Every case is one iteration of `dro-rl train` on made-up questions, by random Llamas that sample
distinct documents; `max_length` is that of the longest prompt, as the estimate takes it. Measured
is the largest resident size that a process has had (`memory/*` of metrics.jsonl); both sides count
what the libraries take before any model. On Ray each role is a process, in local mode all are one.

Writes results/memory_estimate.json and .md beside this file; of named cases alone the figures are
new. Exits with 1 where an estimate is off by more than a fifth.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.timing import RESULTS, prepare, table, write_results  # noqa: E402

prepare()

import yaml  # noqa: E402

from benchmarks.memory import (  # noqa: E402
    ALLOWED,
    BFLOAT16,
    CHECKPOINTED,
    DOCUMENTS,
    LORA,
    SAMPLES,
    SELECTED,
)
from benchmarks.world import make_example, save_model  # noqa: E402
from dro_rl.estimate import footprint  # noqa: E402
from dro_rl.estimate.footprint import Footprint  # noqa: E402
from dro_rl.estimate.shape import shape_of  # noqa: E402
from dro_rl.policy import causal_lm  # noqa: E402
from dro_rl.recipe import POLICIES, Recipe  # noqa: E402
from dro_rl.records import Example  # noqa: E402
from tests.commands import dro_rl, iterations  # noqa: E402

LEAST = 0.25  # GiB, below which the noise of the libraries is all there is
PATIENT = {"RAY_raylet_start_wait_time_s": "300"}  # on a busy machine Ray gives up too soon


@dataclass(frozen=True)
class Case:
    """A size of `benchmarks.shapes` and settings, of both policies; questions of a batch, tokens of
    a forward pass."""

    size: str
    policy: dict[str, Any]
    questions: int = 4
    tokens: int = 1024
    mode: str = "ray"
    engine: str = "transformers"


CASES = {
    "5M, vLLM": Case("5M", {}, engine="vllm"),
    "5M": Case("5M", {}, questions=8, tokens=2048),
    "20M, bfloat16": Case("20M", BFLOAT16),
    "50M, bfloat16, LoRA, checkpointing": Case("50M", {**BFLOAT16, **LORA, **CHECKPOINTED}),
    "100M, checkpointing": Case("100M", CHECKPOINTED),
    "5M, one process": Case("5M", {}, questions=8, tokens=2048, mode="local"),
    "50M, LoRA, one process": Case("50M", LORA, mode="local"),
}


# --- the runs -------------------------------------------------------------------------------------


def make_recipe(case: Case, folder: Path) -> Path:
    """Models, questions and a recipe in `folder`."""
    examples = [make_example(n, DOCUMENTS, (38, 40)) for n in range(2 * case.questions)]
    settings: dict[str, Any] = {
        "data": {
            "kind": "jsonl",
            "path": str(folder / "data.jsonl"),
            "evaluation_questions": case.questions,
        },
        "retrieval": {"kind": "given", "candidates": DOCUMENTS},
        "rollout": {
            "engine": case.engine,
            "decoding": "distinct",
            "max_sequences": 32,
            "max_logp_gap": 1.0,
        },
        "algorithm": {"samples": SAMPLES},
        "training": {
            "iterations": 1,
            "batch_size": case.questions,
            "tokens_per_microbatch": case.tokens,
        },
        "evaluation": {"samples": SAMPLES},
        "tracking": {"run_dir": str(folder / "run")},
        "cluster": {"mode": case.mode},
    }
    for policy in POLICIES:
        save_model(folder / policy, case.size, case.policy.get("dtype", "float32"))
        settings[policy] = {
            **{"model": str(folder / policy), "dtype": "float32", "learning_rate": 1e-5},
            **{"max_new_tokens": 12, "max_length": 4096},
            **case.policy,
        }
    settings["selector"]["documents"] = SELECTED
    for policy, length in longest(Recipe.model_validate(settings), examples).items():
        settings[policy]["max_length"] = length
    write_questions(folder / "data.jsonl", examples)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings))
    return folder / "recipe.yaml"


def longest(recipe: Recipe, examples: Sequence[Example]) -> dict[str, int]:
    """Tokens of each policy's longest prompt with the longest completion."""
    selector, generator = recipe.selector, recipe.generator
    writer = causal_lm.prompt_writer(selector, selector.model)
    select = [writer.select(e.question, e.candidates, SELECTED).token_ids for e in examples]
    answer = [
        writer.answer(e.question, sorted(e.candidates, key=lambda d: -len(d.text))[:2]).token_ids
        for e in examples
    ]
    return {
        "selector": max(map(len, select)) + selector.max_new_tokens,
        "generator": max(map(len, answer)) + generator.max_new_tokens,
    }


def write_questions(path: Path, examples: Sequence[Example]) -> None:
    rows = [
        {
            "id": e.id,
            "question": e.question,
            "answers": list(e.answers),
            "documents": [
                {"title": d.title, "text": d.text, "is_gold": i < SELECTED}
                for i, d in enumerate(e.candidates)
            ],
        }
        for e in examples
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def measure(case: Case) -> dict[str, dict[str, float]]:
    """Estimated and measured GiB by role."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = make_recipe(case, folder)
        recipe = Recipe.model_validate(yaml.safe_load(path.read_text()))
        shapes = {p: shape for p in POLICIES if (shape := shape_of(recipe.policy(p)))}
        expected = by_role(recipe, list(footprint.processes(recipe, shapes, "cpu")))
        dro_rl("train", path, timeout=3000, **PATIENT).succeeded()
        (row,) = iterations(folder / "run")
    return {
        role: {
            "estimated": f.total,
            "measured": row[f"memory/{role}"],
            "libraries": f.parts["process"],
        }
        for role, f in expected.items()
    }


def by_role(recipe: Recipe, held: list[Footprint]) -> dict[str, Footprint]:
    """Under the names of metrics.jsonl."""
    if recipe.cluster.mode == "local":
        return {"trainer": footprint.one_process(held)}
    names = {"reward service": "reward"}
    found = {names.get(f.role, f.role.replace(" ", "_")): f for f in held}
    return {**found, "trainer": footprint.trainer()}


# --- the report -----------------------------------------------------------------------------------


def report(cells: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    rows = [
        [
            name,
            role.replace("_", " "),
            f"{c['estimated']:.2f}",
            f"{c['measured']:.2f}",
            f"{error(c):+.0%}",
            f"{beyond(c):+.0%}" if c["measured"] - c["libraries"] > LEAST else "",
        ]
        for name, roles in cells.items()
        for role, c in roles.items()
    ]
    errors = [error(c) for roles in cells.values() for c in roles.values()]
    return [
        f"Batches of 4 and 8 questions of {DOCUMENTS} documents, {SAMPLES} selections of {SELECTED}"
        f" each. The estimate's error is between {min(errors):+.0%} and {max(errors):+.0%}, "
        f"{sum(map(abs, errors)) / len(errors):.1%} on average (allowed: {ALLOWED:.0%}):",
        table(
            ["run", "process", "estimated [GiB]", "measured [GiB]", "error", "beyond libraries"],
            rows,
        ),
    ]


def error(cell: dict[str, float]) -> float:
    return cell["estimated"] / cell["measured"] - 1


def beyond(cell: dict[str, float]) -> float:
    """The error of what a process holds besides the libraries, which are most of a small one."""
    known = cell["libraries"]
    return (cell["estimated"] - known) / (cell["measured"] - known) - 1


def main() -> None:
    named = sys.argv[1:]
    kept = RESULTS / "memory_estimate.json"
    cells = json.loads(kept.read_text())["cells"] if named and kept.exists() else {}
    for name in named or CASES:
        cells[name] = measure(CASES[name])
        cells = {name: cells[name] for name in CASES if name in cells}
        write_results("memory_estimate", {"cells": cells}, report(cells), "one run a case")
    if any(abs(error(c)) > ALLOWED for roles in cells.values() for c in roles.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
