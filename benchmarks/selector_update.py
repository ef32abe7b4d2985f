"""An update of the selector: ours against TRL's GRPO and against a plain loop on transformers.

    python benchmarks/selector_update.py [--large | --gpu]

A question has m completions of 20 tokens after a prompt of P. All sides learn the same weighted
likelihood of them with AdamW (forward, backward, optimiser step), in turns: ours in one row of
tries; TRL 1.16 by its own `GRPOTrainer.compute_loss`, set to Dr. GRPO with advantages that make its
gradient ours, once as it comes, with gradient checkpointing, and once without; the loop in a row a
completion, logits kept for completions alone. The norms of the first gradients have to agree. Peak
memory of two updates is measured in a process of its own each, above what the loaded model takes.

`--large` measures the shapes of 50M parameters that take minutes and up to 22 GB instead, `--gpu` a
model of 0.5B in bfloat16. Writes results/selector_update.json and .md (-large, -gpu) beside this
file, after every shape.
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
warnings.filterwarnings("ignore", message="TRL currently supports vLLM", category=UserWarning)

from benchmarks.timing import in_turns, prepare, table, write_results  # noqa: E402

prepare()

import torch  # noqa: E402

from benchmarks.memory import peak_growth  # noqa: E402
from benchmarks.shapes import (  # noqa: E402
    FORMULA,
    SIZES,
    autocast,
    device_of,
    make_model,
    packed_flops,
    padded,
    padded_flops,
    random_ids,
)
from dro_rl.policy.completion import Completion  # noqa: E402
from dro_rl.policy.likelihood import Likelihood  # noqa: E402
from tests.models import make_tokenizer  # noqa: E402

NEW = 20
Loss = Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Cell:
    """A shape: model, prompt tokens, completions, turns to measure."""

    size: str
    prompt: int
    samples: int
    turns: int

    def completions(self) -> list[Completion]:
        draw = random.Random(0)
        prompt = random_ids(draw, self.prompt)
        return [Completion(prompt, random_ids(draw, NEW)) for _ in range(self.samples)]

    def weights(self) -> torch.Tensor:
        return torch.randn(self.samples, generator=torch.Generator().manual_seed(0)).softmax(0)


CELLS = [
    Cell("5M", 300, 8, 5),
    Cell("5M", 300, 16, 3),
    Cell("5M", 1500, 8, 2),
    Cell("5M", 1500, 16, 1),
    Cell("50M", 300, 8, 1),
]
LARGE = [Cell("50M", 300, 16, 1), Cell("50M", 1500, 8, 1), Cell("50M", 1500, 16, 1)]
GPU = [Cell("0.5B", 3000, 8, 5)]
SHAPES = {  # by the results' suffix: what is timed, and what memory is measured of
    "": (CELLS, Cell("5M", 1500, 8, 1)),
    "-large": (LARGE, Cell("50M", 300, 8, 1)),
    "-gpu": (GPU, GPU[0]),
}
TARGETS = {("5M", 300, 8): 5.5, ("5M", 1500, 8): 11.0}  # over TRL


class Update:
    """A model, its optimiser, and one way to the loss."""

    def __init__(self, model: Any, loss: Loss) -> None:
        self.model, self.loss = model, loss
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
        self.norms: list[float] = []

    def __call__(self) -> None:
        self.loss().backward()
        gradients = [p.grad for p in self.model.parameters()]
        self.norms.append(torch.nn.utils.get_total_norm(gradients).item())
        self.optimizer.step()
        self.optimizer.zero_grad()


# --- the sides ------------------------------------------------------------------------------------


def ours(cell: Cell, device: str) -> Update:
    model = make_model(cell.size, device)
    likelihood = Likelihood(model)
    return Update(model, _weighted(cell, device, likelihood.of))


def naive(cell: Cell, device: str) -> Update:
    model = make_model(cell.size, device)
    return Update(model, _weighted(cell, device, lambda completions: padded(model, completions)))


def _weighted(cell: Cell, device: str, of: Callable[[Sequence[Completion]], torch.Tensor]) -> Loss:
    completions, weights = cell.completions(), cell.weights().to(device)

    def loss() -> torch.Tensor:
        with autocast(device):
            logps = of(completions)
        return -(weights * logps).sum()

    return loss


def trl(cell: Cell, device: str, checkpointing: bool = False) -> Update:
    """Its trainer, given the batch that it would have made at sampling."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    with tempfile.TemporaryDirectory() as scratch:
        trainer: Any = GRPOTrainer(
            model=make_model(cell.size, device),
            processing_class=make_tokenizer(),
            reward_funcs=[lambda prompts, **columns: [0.0] * len(prompts)],
            train_dataset=Dataset.from_dict({"prompt": ["-"]}),
            args=GRPOConfig(
                output_dir=scratch,
                per_device_train_batch_size=cell.samples,
                num_generations=cell.samples,
                max_completion_length=NEW,
                loss_type="dr_grpo",
                scale_rewards="none",
                gradient_checkpointing=checkpointing,
                bf16=device == "cuda",
                use_cpu=device == "cpu",
                report_to=[],
            ),
        )
    completions = cell.completions()
    given = {
        "prompt_ids": torch.tensor([c.prompt_ids for c in completions], device=device),
        "completion_ids": torch.tensor([c.token_ids for c in completions], device=device),
        "advantages": cell.weights().to(device) * cell.samples * NEW,
    }
    for name in ("prompt", "completion"):
        given[f"{name}_mask"] = torch.ones_like(given[f"{name}_ids"])
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    if checkpointing:  # what its train() does
        trainer.model.gradient_checkpointing_enable(trainer.args.gradient_checkpointing_kwargs)
    return Update(trainer.model, lambda: trainer.compute_loss(trainer.model, given))


def trl_default(cell: Cell, device: str) -> Update:
    return trl(cell, device, checkpointing=True)


SIDES = {"ours": ours, "naive": naive, "TRL": trl, "TRL default": trl_default}

# --- measuring ------------------------------------------------------------------------------------


def measure(cell: Cell, device: str) -> dict[str, Any]:
    """Seconds of every side, and their ratios to ours; `optimizer` is AdamW's step alone."""
    updates = {name: make(cell, device) for name, make in SIDES.items()}
    idle = Update(make_model(cell.size, device), torch.Tensor)
    for parameter in idle.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    times = in_turns({**updates, "optimizer": idle.optimizer.step}, cell.turns)
    first = {name: update.norms[0] for name, update in updates.items()}
    apart = max(first.values()) / min(first.values()) - 1
    if apart > (0.05 if device == "cuda" else 1e-3):
        raise RuntimeError(f"the sides learn different things: gradient norms {first}")
    config, completions = SIZES[cell.size], cell.completions()
    possible = padded_flops(config, completions) / packed_flops(config, completions)
    seconds = {name: t.median for name, t in times.items()}
    over = {name: times[name].over(times["ours"]) for name in SIDES if name != "ours"}
    passes = (seconds["naive"] - seconds["optimizer"]) / (seconds["ours"] - seconds["optimizer"])
    return {
        "model": cell.size,
        "prompt": cell.prompt,
        "samples": cell.samples,
        "turns": cell.turns,
        "seconds": seconds,
        "over": over,
        "possible": possible,
        "of_possible": over["naive"] / possible,
        "of_possible_without_optimizer": passes / possible,
    }


def peak_memory(side: str, cell: Cell, device: str) -> float:
    """MiB that two updates add to what the loaded model takes (the gradient and AdamW's state are
    part of it): of the process, resident, or of the GPU's memory, allocated."""
    if device == "cpu":
        return peak_growth(lambda: SIDES[side](cell, device))
    gc.collect()  # the side before
    update = SIDES[side](cell, device)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    update()
    update()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


# --- the report -----------------------------------------------------------------------------------


def report(cells: Sequence[dict[str, Any]], memory: dict[str, float], cell: Cell) -> list[str]:
    rows = []
    for c in cells:
        target = TARGETS.get((c["model"], c["prompt"], c["samples"]))
        rows.append(
            [
                f"{c['model']}, P = {c['prompt']}, m = {c['samples']}",
                *(f"{c['seconds'][s]:.3g}" for s in (*SIDES, "optimizer")),
                f"{c['over']['TRL']:.1f}",
                f"{c['over']['TRL default']:.1f}" + (f" (target {target})" if target else ""),
                f"{c['over']['naive']:.2f}",
                f"{c['possible']:.2f}",
                f"{c['of_possible']:.0%}",
                f"{c['of_possible_without_optimizer']:.0%}",
                str(c["turns"]),
            ]
        )
    head = ["", *(f"{side} [s]" for side in SIDES), "AdamW alone [s]"]
    head += ["TRL / ours", "TRL default / ours", "naive / ours"]
    head += ["possible", "reached (target 95 %)", "without AdamW", "turns"]
    return [
        "A selector's update, 20-token completions. Possible: the ratio of what the two forwards "
        f"take, {FORMULA} (the backward takes twice that, AdamW's step the same on all sides). TRL "
        "default has gradient checkpointing, which is time for memory; TRL is without, like ours:",
        table(head, rows),
        f"Peak memory of the update, {cell.size}, P = {cell.prompt}, m = {cell.samples}, above "
        "the loaded model's (target: at most 1/4 of naive):",
        table(
            ["", "MiB", "of naive"],
            [[s, f"{v:.0f}", f"{v / memory['naive']:.2f}"] for s, v in memory.items()],
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--large", action="store_true", help="half an hour on the CPU, 22 GB")
    which.add_argument("--gpu", action="store_true")
    chosen = parser.parse_args()
    device = device_of(chosen.gpu)
    torch.set_num_threads(1)
    suffix = "-gpu" if chosen.gpu else "-large" if chosen.large else ""
    shapes, cell = SHAPES[suffix]
    memory = {side: peak_memory(side, cell, device) for side in SIDES}  # first: it forks
    cells = []
    for shape in shapes:
        cells.append(measure(shape, device))
        write_results(
            f"selector_update{suffix}",
            {"cells": cells, "peak_memory": memory},
            report(cells, memory, cell),
            "medians of as many turns as the table says",
        )


if __name__ == "__main__":
    main()
