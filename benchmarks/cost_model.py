"""A simple model of an iteration's seconds, fitted to what its stages take here, and checked.

    python benchmarks/cost_model.py

Sampling, scoring, a learning pass and a sync of a Llama of 5M parameters are timed for several
numbers of questions, selections and words (one thread, float32, vLLM), in seconds of the processor,
so that other work on the machine does not count. Each stage's coefficients are fitted by least
squares of the relative error, none negative, on some of the configurations; the error is reported
on the others, of which some lie outside what was fitted. Then `simulate.py` shows what the same
model says of GPUs.

Writes results/cost_model.json and .md beside this file.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.timing import prepare, table, write_results  # noqa: E402

prepare()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from scipy.optimize import nnls  # noqa: E402

from benchmarks.costs import STAGES, Load, features  # noqa: E402
from benchmarks.sides import Ours  # noqa: E402
from benchmarks.simulate import simulated  # noqa: E402
from benchmarks.world import made_up_rollouts, make_example, make_recipe  # noqa: E402
from dro_rl.estimate.shape import Shape, shape_of  # noqa: E402
from dro_rl.recipe import Recipe  # noqa: E402
from dro_rl.records import Example, Rollout  # noqa: E402
from dro_rl.rollout.worker import RolloutWorker  # noqa: E402

TURNS = 2
DOCUMENTS, SELECTED, BATCH, SEQUENCES = 8, 2, 4, 256


@dataclass(frozen=True)
class Configuration:
    size: str
    questions: int
    samples: int
    words: int


FITTED = [
    Configuration("5M", *rest)
    for rest in ((4, 4, 8), (12, 4, 8), (4, 8, 24), (8, 2, 24), (8, 8, 12), (4, 16, 8))
]
HELD_OUT = [
    Configuration("5M", *rest) for rest in ((8, 4, 16), (6, 8, 40), (16, 8, 24), (24, 4, 16))
]


# --- measuring ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """Seconds of each stage, and its features."""

    configuration: Configuration
    seconds: dict[str, float]
    features: dict[str, float]


def measure(size: str, configurations: Sequence[Configuration]) -> list[Measured]:
    """All configurations of a size, with one engine."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = make_recipe(
            Path(folder),
            size,
            retrieval={"candidates": DOCUMENTS},
            selector={"documents": SELECTED, "dtype": "float32"},
            training={"batch_size": BATCH},
            rollout={"max_sequences": SEQUENCES, "max_logp_gap": 1.0},
        )
        worker = RolloutWorker(recipe, "selector", recipe.selector.model)
        ours = Ours(recipe, worker, [])
        timed(recipe, ours, configurations[0])  # warms all of it up
        return [timed(recipe, ours, c) for c in configurations]


def timed(recipe: Recipe, ours: Ours, c: Configuration) -> Measured:
    recipe = recipe.model_copy(
        update={"algorithm": recipe.algorithm.model_copy(update={"samples": c.samples})}
    )
    examples = [make_example(n, DOCUMENTS, (c.words, c.words)) for n in range(c.questions)]
    rollouts = made_up_rollouts(recipe, examples)
    sampled: list[Rollout] = []

    def rollout() -> None:
        sampled[:] = ours.worker.select(examples, c.samples, 0)

    def synchronise() -> None:
        weights = {p: learner.weights() for p, learner in ours.learners.items()}
        ours.worker.load_weights(weights["selector"], 1)
        ours.service.load_weights(weights["generator"], 1)

    stages: dict[str, Callable[[], Any]] = {
        "rollout": rollout,
        "score": lambda: ours.service.score(rollouts),
        "learn": lambda: ours.learn(rollouts),
        "synchronise": synchronise,
    }
    seconds = {name: seconds_of(stage) for name, stage in stages.items()}
    shape = shape_of(recipe.selector)
    assert shape is not None
    print(c, {k: round(v, 3) for k, v in seconds.items()}, flush=True)
    return Measured(c, seconds, counted(ours, shape, examples, sampled, rollouts))


def seconds_of(stage: Callable[[], Any]) -> float:
    """Of the processor, the fastest of some turns."""
    times = []
    for _ in range(TURNS):
        start = time.process_time()
        stage()
        times.append(time.process_time() - start)
    return min(times)


def counted(
    ours: Ours,
    shape: Shape,
    examples: Sequence[Example],
    sampled: Sequence[Rollout],
    rollouts: Sequence[Rollout],
) -> dict[str, float]:
    """The features, from the tokens that there are."""
    learner = ours.learners["generator"]
    groups = [[c for t in learner.objective.answers(r) for c in t.completions] for r in rollouts]
    completions = [c for group in groups for c in group]
    drawn = [s for r in sampled for s in r.selections]
    load = Load(
        questions=len(examples),
        samples=len(rollouts[0].selections),
        prompt=statistics.mean(len(r.prompt_ids) for r in rollouts),
        selection=statistics.mean(len(s.token_ids) for s in drawn),
        prefixes=statistics.mean(map(learner.objective.likelihood.cost, groups)),
        prefix=statistics.mean(map(len, completions)),
        answer=statistics.mean(len(c.token_ids) for c in completions),
        lists=len(completions) / len(examples),
        batch=BATCH,
        sequences=SEQUENCES,
    )
    return features(load, shape, 4)


# --- fitting --------------------------------------------------------------------------------------


def fit(measured: Sequence[Measured]) -> dict[str, list[float]]:
    """Coefficients of each stage's features."""
    found = {}
    for stage, names in STAGES.items():
        seconds = np.array([m.seconds[stage] for m in measured])
        rows = np.array([[m.features[n] for n in names] for m in measured])
        scale = rows.max(0)  # nnls stops early on columns of very different sizes
        solved, _ = nnls(rows / scale / seconds[:, None], np.ones(len(measured)))
        found[stage] = (solved / scale).tolist()
    return found


def predicted(coefficients: dict[str, list[float]], m: Measured) -> dict[str, float]:
    return {
        stage: sum(c * m.features[n] for c, n in zip(coefficients[stage], names, strict=True))
        for stage, names in STAGES.items()
    }


def error(coefficients: dict[str, list[float]], m: Measured) -> dict[str, float]:
    """Relative, of each stage and of the whole."""
    expected = predicted(coefficients, m)
    expected["all"], took = sum(expected.values()), {**m.seconds, "all": sum(m.seconds.values())}
    return {stage: expected[stage] / took[stage] - 1 for stage in expected}


# --- the report -----------------------------------------------------------------------------------


def report(
    coefficients: dict[str, list[float]], fitted: Sequence[Measured], held: Sequence[Measured]
) -> list[str]:
    terms = [
        [stage, name, f"{c:.3g} s" + (f" ({1 / c / 1e9:.3g} G/s)" if 0 < c < 1e-6 else "")]
        for stage, names in STAGES.items()
        for name, c in zip(names, coefficients[stage], strict=True)
    ]
    errors = [
        [
            f"{m.configuration.size}, {m.configuration.questions} x {m.configuration.samples}, "
            f"{m.configuration.words} words",
            f"{sum(m.seconds.values()):.2f}",
            *(f"{e:+.0%}" for e in error(coefficients, m).values()),
        ]
        for m in held
    ]
    own = [abs(e) for m in fitted for e in error(coefficients, m).values()]
    return [
        f"Fitted to {len(fitted)} configurations, whose stages it gives to {np.mean(own):.0%} on "
        f"average ({max(own):.0%} at worst):",
        table(["stage", "a term", "each"], terms),
        "Not fitted (parameters, questions x selections, words a document): measured seconds of "
        "all stages, and the model's error:",
        table(["", "s", *STAGES, "all"], errors),
    ]


def main() -> None:
    torch.set_num_threads(1)
    everything = [*FITTED, *HELD_OUT]
    sizes = dict.fromkeys(c.size for c in everything)
    measured = [
        m for size in sizes for m in measure(size, [c for c in everything if c.size == size])
    ]
    fitted = [m for m in measured if m.configuration in FITTED]
    held = [m for m in measured if m.configuration in HELD_OUT]
    coefficients = fit(fitted)
    figures, tables = simulated()
    write_results(
        "cost_model",
        {
            "coefficients": coefficients,
            "measured": [asdict(m) for m in measured],
            "simulated": figures,
        },
        [*report(coefficients, fitted, held), *tables],
        f"seconds of the processor, the fastest of {TURNS} turns",
    )


if __name__ == "__main__":
    main()
