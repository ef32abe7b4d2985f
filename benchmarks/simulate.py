"""Where 8, 64 and 512 GPUs would spend an iteration's time: the stages of `costs.py` with the rates
of a data sheet in the place of what was fitted. Extrapolated, not measured.

    python benchmarks/simulate.py
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.costs import Load, features  # noqa: E402
from benchmarks.timing import table  # noqa: E402
from dro_rl.estimate.shape import Shape  # noqa: E402

# HotpotQA as recipes/dro_hotpot.yaml has it: 20 paragraphs of 560 characters (the mean of 501
# validation questions) at 4.2 characters a token; eight selections of 5, of which seven differ and
# share no prefix; answers of 4 tokens.
HOTPOT = Load(
    questions=90_447,
    samples=8,
    prompt=2800,
    selection=20,
    prefixes=7 * 720,
    prefix=720,
    answer=4,
    lists=7,
    batch=64,
    sequences=256,
)
LLAMA_8B = Shape(32, 4096, 32, 8, 128, 14336, 128256, False)
MICROBATCH = 8192


@dataclass(frozen=True)
class Machine:
    """Nodes of 8 GPUs; rates are peaks times the share of them that is assumed to be reached."""

    prefill: float = 989e12 * 0.5
    training: float = 989e12 * 0.4
    memory: float = 3.35e12 * 0.7
    within_node: float = 450e9 * 0.7
    between_nodes: float = 50e9 * 0.7
    objects: float = 2e9
    step: float = 0.01


ASSUMED = [
    ["prefill, scoring", "989 TFLOP/s (H100 SXM, dense bfloat16)", "50 %"],
    ["training", "989 TFLOP/s", "40 %"],
    ["decoding, optimiser: GPU memory", "3.35 TB/s", "70 %"],
    ["collectives in a node of 8 (NVLink, one direction)", "450 GB/s a GPU", "70 %"],
    ["collectives between nodes", "50 GB/s a GPU", "70 %"],
    ["new weights, from one node to another", "2 GB/s, doubling the nodes that have them", "-"],
    ["an optimiser step's calls and gathering of results", "10 ms", "-"],
]


@dataclass(frozen=True)
class Layout:
    """How many GPUs each role has; colocated roles take turns on the same ones. `training`: passes
    over the weights that a step costs, in forward passes, the one that checkpointing repeats among
    them."""

    name: str
    gpus: int
    engines: int
    rewards: int
    ranks: int  # of each policy's learner
    training: int = 4

    @staticmethod
    def colocated(gpus: int) -> Layout:
        return Layout(f"{gpus} GPUs, colocated", gpus, gpus, gpus, gpus // 2)


LAYOUTS = [
    Layout("8 GPUs, a role each, LoRA", 8, 3, 2, 1, training=3),
    *(Layout.colocated(gpus) for gpus in (8, 64, 512)),
]


def seconds(load: Load, shape: Shape, machine: Machine, layout: Layout) -> dict[str, float]:
    """Of an iteration's stages, everything scored before the first step."""
    work = features(load, shape, 2)
    return {
        "rollout": work["prefill FLOPs"] / (layout.engines * machine.prefill)
        + decoding(load, shape, machine, layout.engines),
        "score": work["scoring FLOPs"] / (layout.rewards * machine.prefill),
        "learn": learning(load, shape, machine, layout),
        "synchronise": synchronising(shape, machine, layout.gpus),
    }


def decoding(load: Load, shape: Shape, machine: Machine, engines: int) -> float:
    """Each step reads the weights once, and the keys and values of every sequence."""
    waves = math.ceil(load.questions * load.samples / (engines * load.sequences))
    cache = load.sequences * (load.prompt + load.selection / 2) * 4 * shape.layers * shape.key
    return waves * load.selection * (2 * shape.parameters + cache) / machine.memory


def learning(load: Load, shape: Shape, machine: Machine, layout: Layout) -> float:
    """The generator's steps, which take longer than the selector's beside them. A rank takes whole
    questions; gathering weights twice a pass and gradients once hides behind computing."""
    one = features(replace(load, questions=1, batch=1), shape, 2)
    ranks = layout.ranks
    busy = min(ranks, load.batch)
    questions = math.ceil(load.batch / busy)
    computing = questions * layout.training * one["scoring FLOPs"] / machine.training
    passes = math.ceil(questions * load.prefixes / MICROBATCH)
    link = machine.within_node if ranks <= 8 else machine.between_nodes
    moved = passes * (2 * 2 + 4) * shape.parameters * (ranks - 1) / ranks / link
    optimiser = 28 * shape.parameters / ranks / machine.memory
    steps = math.ceil(load.questions / load.batch)
    return steps * (max(computing, moved) + optimiser + machine.step)


def synchronising(shape: Shape, machine: Machine, gpus: int) -> float:
    """Both policies', once to the first node's store and then from node to node."""
    hops = 1 + math.ceil(math.log2(max(1, gpus / 8)))
    return 2 * hops * 2 * shape.parameters / machine.objects


def simulated() -> tuple[list[dict[str, Any]], list[str]]:
    """Figures, and the tables that show them."""
    cases = [
        (layout, batch)
        for layout in LAYOUTS
        for batch in ((64,) if layout.gpus == 8 else (64, 512))
    ]
    figures, rows = [], []
    for layout, batch in cases:
        stages = seconds(replace(HOTPOT, batch=batch), LLAMA_8B, Machine(), layout)
        total = sum(stages.values())
        figures.append({"layout": layout.name, "batch": batch, "seconds": stages})
        shares = [f"{s:,.0f} s ({s / total:.0%})" for s in stages.values()]
        hours = total * layout.gpus / 3600
        rows.append([layout.name, str(batch), f"{total / 60:,.0f}", f"{hours:,.0f}", *shares])
    head = ["", "batch", "minutes", "GPU hours", "rollout", "score", "learn", "synchronise"]
    return figures, [
        "Extrapolated, not measured: an iteration over HotpotQA's 90,447 training questions with "
        "two Llama-3-8B, 20 candidates, 8 selections of 5; all weights are trained where no LoRA "
        "is named. Assumed:",
        table(["what", "peak", "reached"], ASSUMED),
        table(head, rows),
    ]


if __name__ == "__main__":
    print("\n\n".join(simulated()[1]))
