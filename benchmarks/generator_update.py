"""An update of the generator: one forward over tries against scoring, then training, padded rows.

    python benchmarks/generator_update.py [--gpu]

A question has 8 selections of 5 of its 20 documents (100 to 150 tokens each; question 20, answer
5). Ours reads what they have in common once, in one forward: the weights are the softmax of the
log-likelihoods that it is trained by, w = softmax(log p) held fixed. The peer scores selections
without a gradient, then reads them again to train, a padded row each: every sample, or each of the
different ones once. A step is an update from `QUESTIONS` questions; all sides have to end with the
same gradient norm.

Selections are drawn from Plackett-Luce distributions over the documents, from flat to sharp, since
the sharper the selector is, the more selections begin alike. Prompts come in two orders: documents
first, as the plain template has them, or question first, in which case the question is shared too.

`--gpu` measures a model of 0.5B in bfloat16. Writes results/generator_update.json and .md (-gpu).
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.timing import in_turns, prepare, table, write_results  # noqa: E402

prepare()

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.shapes import (  # noqa: E402
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

SAMPLES, DOCUMENTS, SELECTED = 8, 20, 5
QUESTIONS, TURNS = 2, 2
ORDERS = {"documents first": False, "question first": True}
TEMPERATURES = {"flat": math.inf, "middle": 0.3, "sharp": 0.1}
SIDES = ("every sample", "different")
TARGETS = {"flat": 1.7, "sharp": 3.0}


@dataclass(frozen=True)
class Group:
    """A question's different selections as completions, which of them each sample drew, and minus
    the mean log-probability of the samples [nats]."""

    completions: list[Completion]
    drawn: list[int]
    entropy: float

    def every_sample(self) -> Group:
        """The same with a completion a sample."""
        completions = [self.completions[i] for i in self.drawn]
        return Group(completions, list(range(len(completions))), self.entropy)


def make_group(seed: int, temperature: float, question_first: bool) -> Group:
    draw = random.Random(seed)
    question, answer, end = (random_ids(draw, n) for n in (20, 5, 3))
    documents = [random_ids(draw, draw.randint(100, 150)) for _ in range(DOCUMENTS)]
    scores = [draw.gauss(0, 1) / temperature for _ in documents]
    selections = [plackett_luce(draw, scores) for _ in range(SAMPLES)]
    different = list(dict.fromkeys(order for order, _ in selections))
    completions = []
    for order in different:
        read = tuple(token for i in order for token in documents[i])
        prompt = (*question, *read, *end) if question_first else (*read, *question, *end)
        completions.append(Completion(prompt, answer))
    entropy = -statistics.mean(logp for _, logp in selections)
    return Group(completions, [different.index(order) for order, _ in selections], entropy)


def plackett_luce(draw: random.Random, scores: Sequence[float]) -> tuple[tuple[int, ...], float]:
    """Documents drawn one after the other, each in proportion to exp(score) among those left, and
    the log-probability of that [nats]."""
    left, order, logp = list(range(len(scores))), [], 0.0
    for _ in range(SELECTED):
        weights = [math.exp(scores[i] - max(scores[j] for j in left)) for i in left]
        at = draw.choices(range(len(left)), weights)[0]
        logp += math.log(weights[at] / sum(weights))
        order.append(left.pop(at))
    return tuple(order), logp


class Update(ABC):
    """A model and its optimiser; `backward` adds a question's gradient."""

    def __init__(self, device: str, size: str, groups: Sequence[Group]) -> None:
        self.model, self.groups, self.device = make_model(size, device), groups, device
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=True)
        self.norms: list[float] = []

    @abstractmethod
    def backward(self, group: Group) -> None: ...

    def __call__(self) -> None:
        for group in self.groups:
            self.backward(group)
        gradients = [p.grad for p in self.model.parameters()]
        self.norms.append(torch.nn.utils.get_total_norm(gradients).item())
        self.optimizer.step()
        self.optimizer.zero_grad()

    def logps(self, of: Callable[[Sequence[Completion]], Tensor], group: Group) -> Tensor:
        """log p of the answer after each sample [nats]."""
        with autocast(self.device):
            return of(group.completions)[group.drawn]


class OneForward(Update):
    def __init__(self, device: str, size: str, groups: Sequence[Group]) -> None:
        super().__init__(device, size, groups)
        self.likelihood = Likelihood(self.model)

    def backward(self, group: Group) -> None:
        logps = self.logps(self.likelihood.of, group)
        (-(logps.detach().softmax(0) * logps).sum()).backward()


class ScoreThenTrain(Update):
    def backward(self, group: Group) -> None:
        with torch.no_grad():
            weights = self.logps(self._rows, group).softmax(0)
        (-(weights * self.logps(self._rows, group)).sum()).backward()

    def _rows(self, completions: Sequence[Completion]) -> Tensor:
        return padded(self.model, completions)


def measure(kind: str, order: str, size: str, device: str) -> dict[str, Any]:
    groups = [make_group(q, TEMPERATURES[kind], ORDERS[order]) for q in range(QUESTIONS)]
    rows = dict(zip(SIDES, ([g.every_sample() for g in groups], groups), strict=True))
    updates: dict[str, Update] = {"ours": OneForward(device, size, groups)}
    updates |= {name: ScoreThenTrain(device, size, some) for name, some in rows.items()}
    times = in_turns(updates, TURNS)
    first = {name: update.norms[0] for name, update in updates.items()}
    if max(first.values()) / min(first.values()) - 1 > (0.05 if device == "cuda" else 1e-3):
        raise RuntimeError(f"the sides learn different things: gradient norms {first}")
    own = sum(3 * packed_flops(SIZES[size], g.completions) for g in groups)
    return {
        "selector": kind,
        "order": order,
        "entropy": statistics.mean(g.entropy for g in groups),
        "different": statistics.mean(len(g.completions) for g in groups),
        "times": times,
        "over": {name: times[name].over(times["ours"]) for name in rows},
        "possible": {
            name: sum(4 * padded_flops(SIZES[size], g.completions) for g in some) / own
            for name, some in rows.items()
        },
    }


def report(size: str, cells: Sequence[dict[str, Any]]) -> list[str]:
    rows = [
        [
            f"{c['selector']}, {c['order']}",
            f"{c['entropy']:.1f}",
            f"{c['different']:.1f}",
            *(str(c["times"][side]) for side in ("ours", *SIDES)),
            *(f"{c['over'][side]:.2f} of {c['possible'][side]:.2f}" for side in SIDES),
            str(TARGETS.get(c["selector"], "")),
        ]
        for c in cells
    ]
    head = ["selector, prompt", "entropy [nats]", f"different of {SAMPLES}", "ours [s]"]
    head += [f"{side} [s]" for side in SIDES] + [f"{side} / ours" for side in SIDES] + ["target"]
    return [
        f"A generator's update, {size}, {QUESTIONS} questions, {SAMPLES} selections of {SELECTED} "
        "documents, against padded rows that are scored, then trained. Ratios: as measured, of "
        "what floating-point operations make possible (forward 1, backward 2):",
        table(head, rows),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", action="store_true")
    gpu = parser.parse_args().gpu
    device, size = device_of(gpu), "0.5B" if gpu else "5M"
    torch.set_num_threads(1)
    cells = [measure(kind, order, size, device) for kind in TEMPERATURES for order in ORDERS]
    write_results(
        "generator_update" + ("-gpu" if gpu else ""),
        {"cells": cells},
        report(size, cells),
        f"medians of {TURNS} turns, smallest and largest in brackets",
    )


if __name__ == "__main__":
    main()
