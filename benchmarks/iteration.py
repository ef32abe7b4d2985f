"""A whole DRO iteration: ours against the work that the authors' recipe asks for.

    python benchmarks/iteration.py [--gpu]

Both sides sample with the same engine in this process. Then ours learns with two `Learner`s, of
which the generator's scores in the pass that it learns from, and hands the weights over; the peer
scores every sample by a forward of its own with logits of all tokens, and trains each on a padded
row of its own, a question a micro-batch, again with all logits. Two shapes: recipes/demo.yaml, and
5M parameters with 20 documents of about 65 tokens and 8 selections of 5. Random weights write no
selections, so those are made up once 8 samples of 20 tokens have been drawn, and flat, which leaves
the generator the least to share.

Of ours it also counts what is neither vLLM nor a model's forward, backward or optimiser: prompts,
packing, records, weights. `--gpu` measures the learning alone, of 0.5B parameters in
bfloat16, and spares the peer the logits of prompts.

Writes results/iteration.json and .md (-gpu) beside this file.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.timing import in_turns, prepare, table, write_results  # noqa: E402

prepare()

import torch  # noqa: E402

from benchmarks.shapes import device_of  # noqa: E402
from benchmarks.sides import Ours, Peer, possible  # noqa: E402
from benchmarks.world import made_up_rollouts, make_example, make_recipe  # noqa: E402
from dro_rl.policy import forward  # noqa: E402
from dro_rl.questions import load_questions, questions_of  # noqa: E402
from dro_rl.recipe import Recipe  # noqa: E402
from dro_rl.recipe_file import load_recipe  # noqa: E402
from dro_rl.records import Example, Rollout  # noqa: E402
from dro_rl.rollout.worker import RolloutWorker  # noqa: E402
from dro_rl.tracking.console import Console  # noqa: E402

TARGET, LARGEST_OVERHEAD = 4.0, 0.1


# --- where our time goes --------------------------------------------------------------------------


def account(ours: Ours) -> dict[str, float]:
    """Shares of one iteration by what takes it; what is timed does not nest."""
    seconds: defaultdict[str, float] = defaultdict(float)

    def timed(name: str, function: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = function(*args, **kwargs)
            seconds[name] += time.perf_counter() - start
            return result

        return call

    places = [
        ("vLLM", ours.worker._engine._llm, "generate"),  # pyright: ignore
        ("forward", ours.service.model, "forward"),
        ("forward", forward.Forward, "log_likelihoods"),
        ("backward", torch.Tensor, "backward"),
        ("optimiser", torch.nn.utils, "clip_grad_norm_"),
    ]
    for learner in ours.learners.values():
        optimizer = learner.optimisation.optimizer
        places += [("forward", learner.model, "forward"), ("optimiser", optimizer, "step")]
    with ExitStack() as stack:
        for name, owner, method in places:
            wrapped = timed(name, getattr(owner, method))
            stack.enter_context(patch.object(owner, method, wrapped))
        whole = timed("whole", ours.iteration)
        whole()
    total = seconds.pop("whole")
    shares = {name: value / total for name, value in seconds.items()}
    return {**shares, "other": 1 - sum(shares.values())}


# --- the shapes -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """A recipe and an iteration's questions; whether vLLM samples, and whether selections are made
    up."""

    recipe: Recipe
    examples: Sequence[Example]
    turns: int
    samples: bool = True
    made_up: bool = True


class MadeUpWorker(RolloutWorker):
    """Samples, and returns other selections."""

    def __init__(self, recipe: Recipe, examples: Sequence[Example]) -> None:
        super().__init__(recipe, "selector", recipe.selector.model)
        self._rollouts = made_up_rollouts(recipe, examples)

    def select(self, *args: Any, **kwargs: Any) -> list[Rollout]:
        super().select(*args, **kwargs)
        return self._rollouts


def demo(folder: Path) -> Shape:
    recipe = load_recipe("demo.yaml", ["cluster.threads=1"])
    return Shape(
        recipe, questions_of(recipe, load_questions(recipe, Console()).train, 1), 2, made_up=False
    )


def long(folder: Path) -> Shape:
    recipe = make_recipe(folder, **_LONG)
    return Shape(recipe, [make_example(n, 20, (50, 65)) for n in range(2)], 2)


def gpu(folder: Path) -> Shape:
    recipe = make_recipe(folder, "0.5B", **_LONG)
    return Shape(recipe, [make_example(n, 20, (130, 140)) for n in range(4)], 5, samples=False)


_LONG: dict[str, Any] = {
    "selector": {"documents": 5, "max_new_tokens": 20},
    "algorithm": {"samples": 8},
    "training": {"batch_size": 4},
}


def make_worker(shape: Shape) -> RolloutWorker | None:
    if not shape.samples:
        return None
    if shape.made_up:
        return MadeUpWorker(shape.recipe, shape.examples)
    return RolloutWorker(shape.recipe, "selector", shape.recipe.selector.model)


def measure(make: Callable[[Path], Shape]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        shape = make(Path(folder))
        recipe, examples = shape.recipe, shape.examples
        worker = make_worker(shape)
        if worker is None:
            rollouts = made_up_rollouts(recipe, examples)
        else:
            rollouts = worker.select(examples, recipe.algorithm.samples, 0)
        ours, peer = Ours(recipe, worker, examples), Peer(recipe, worker, examples)
    sides = {"our learning": lambda: ours.learn(rollouts), "theirs": lambda: peer.learn(rollouts)}
    if worker is not None:
        sides |= {"our iteration": ours.iteration, "their iteration": peer.iteration}
    times = in_turns(sides, shape.turns)
    answers = [c for r in rollouts for c in peer.answers(r)]
    return {
        "questions": len(examples),
        "selector_tokens": statistics.mean(len(r.prompt_ids) for r in rollouts),
        "generator_tokens": statistics.mean(map(len, answers)),
        "different": statistics.mean(len({s.documents for s in r.selections}) for r in rollouts),
        "turns": shape.turns,
        "times": times,
        "over": {
            name: times[theirs].over(times[own])
            for name, own, theirs in (
                ("learning", "our learning", "theirs"),
                ("iteration", "our iteration", "their iteration"),
            )
            if own in times
        },
        "possible": possible(peer, rollouts),
        "accounted": account(ours) if worker is not None else {},
    }


# --- the report -----------------------------------------------------------------------------------


def report(cells: dict[str, dict[str, Any]]) -> list[str]:
    rows = [
        [
            f"{name}, {what}",
            str(cell["times"][f"our {what}"]),
            str(cell["times"]["theirs" if what == "learning" else f"their {what}"]),
            f"{over:.2f}" + (f" (target {TARGET:g})" if what == "iteration" else ""),
            f"{cell['possible']:.2f}" if what == "learning" else "",
            str(cell["turns"]),
        ]
        for name, cell in cells.items()
        for what, over in cell["over"].items()
    ]
    tables = [
        *(
            f"{name}: {c['questions']} questions, {c['different']:.1f} different selections each, "
            f"{c['selector_tokens']:.0f} tokens of a selector's prompt, "
            f"{c['generator_tokens']:.0f} of a generator's with its answer."
            for name, c in cells.items()
        ),
        "Possible: the ratio of floating-point operations of learning.",
        table(["", "ours [s]", "the authors' work [s]", "ratio", "possible", "turns"], rows),
    ]
    counted = {name: c["accounted"] for name, c in cells.items() if c["accounted"]}
    if counted:
        kinds = list(next(iter(counted.values())))
        tables += [
            f"Shares of one iteration of ours (target: at most {LARGEST_OVERHEAD:.0%} of other):",
            table(["", *kinds], [[n, *(f"{c[k]:.1%}" for k in kinds)] for n, c in counted.items()]),
        ]
    return tables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", action="store_true", help="learning alone, of 0.5B parameters")
    on_gpu = parser.parse_args().gpu
    device_of(on_gpu)
    torch.set_num_threads(1)
    cells = {s.__name__: measure(s) for s in ([gpu] if on_gpu else [demo, long])}
    write_results(
        "iteration" + ("-gpu" if on_gpu else ""),
        {"cells": cells},
        report(cells),
        "medians of as many turns as the table says",
    )


if __name__ == "__main__":
    main()
