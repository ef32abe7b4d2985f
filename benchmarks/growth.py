"""How time and memory of an iteration's learning grow: with questions, selections, and prompts.

    python benchmarks/growth.py

Each is doubled four times from a small base: scoring by `RewardService`, then a step of both
`Learner`s, 5M parameters, on made-up selections. The growth is the slope of a line through the
logarithms: 1 is linear. Prompts grow by their documents; attention alone is quadratic in their
length. Times are taken in turns; memory is what two iterations add to
the loaded models, in a process of its own for each size; gradients and AdamW's state, which do not
grow, are part of it. Writes results/growth.json and .md beside this file.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.timing import in_turns, prepare, table, write_results  # noqa: E402

prepare()

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks.memory import peak_growth  # noqa: E402
from benchmarks.sides import Ours  # noqa: E402
from benchmarks.world import made_up_rollouts, make_example, make_recipe  # noqa: E402

TURNS = 3
DOUBLED = 4


@dataclass(frozen=True)
class Size:
    """Questions, selections of each, and words of each of its 8 documents, of which 2 are
    selected."""

    questions: int = 1
    samples: int = 4
    words: int = 8


AXES = {"questions": "questions", "samples": "selections", "words": "tokens of a selector's prompt"}


def sizes(axis: str) -> list[Size]:
    base = Size()
    return [replace(base, **{axis: getattr(base, axis) * 2**i}) for i in range(DOUBLED + 1)]


def prepare_learning(folder: Path, size: Size) -> tuple[Callable[[], None], int]:
    """An iteration's learning, and the tokens of a selector's prompt."""
    recipe = make_recipe(
        folder,
        retrieval={"candidates": 8},
        selector={"documents": 2},
        algorithm={"samples": size.samples},
    )
    examples = [make_example(n, 8, (size.words, size.words)) for n in range(size.questions)]
    rollouts = made_up_rollouts(recipe, examples)
    ours = Ours(recipe, None, examples)
    return lambda: ours.learn(rollouts), len(rollouts[0].prompt_ids)


def memory(size: Size) -> float:
    """MiB by which a process's resident memory grows in two iterations' learning."""

    def make() -> Callable[[], None]:
        with tempfile.TemporaryDirectory() as folder:
            return prepare_learning(Path(folder), size)[0]

    return peak_growth(make)


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Of the line through (log x, log y)."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def measure(axis: str, grown: list[float]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        made = [prepare_learning(Path(folder), size) for size in sizes(axis)]
    times = in_turns({str(i): learn for i, (learn, _) in enumerate(made)}, TURNS)
    seconds = [t.median for t in times.values()]
    along = [
        tokens if axis == "words" else getattr(size, axis)
        for size, (_, tokens) in zip(sizes(axis), made, strict=True)
    ]
    return {
        "sizes": [asdict(size) for size in sizes(axis)],
        "along": along,
        "seconds": seconds,
        "mib": grown,
        "slope_of_time": slope(along, seconds),
        "slope_of_time_at_the_end": slope(along[-2:], seconds[-2:]),
        "slope_of_memory": slope(along, grown),
        "slope_of_memory_at_the_end": slope(along[-2:], grown[-2:]),
    }


def report(cells: dict[str, dict[str, Any]]) -> list[str]:
    rows = [
        [
            f"{AXES[axis]}: {', '.join(map(str, c['along']))}",
            ", ".join(f"{s:.2f}" for s in c["seconds"]),
            ", ".join(f"{m:.0f}" for m in c["mib"]),
            f"{c['slope_of_time']:.2f} ({c['slope_of_time_at_the_end']:.2f})",
            f"{c['slope_of_memory']:.2f} ({c['slope_of_memory_at_the_end']:.2f})",
        ]
        for axis, c in cells.items()
    ]
    base = Size()
    return [
        f"Scoring and a step of both learners; base: questions {base.questions}, selections "
        f"{base.samples}. A forward pass takes at most the recipe's 8192 tokens, or one "
        "question. Slopes: of all sizes (of the last two); 1 is linear:",
        table(["doubled", "s", "MiB", "slope of time", "slope of memory"], rows),
    ]


def main() -> None:
    torch.set_num_threads(1)
    grown = {axis: [memory(size) for size in sizes(axis)] for axis in AXES}  # first: forks
    cells = {axis: measure(axis, grown[axis]) for axis in AXES}
    write_results("growth", cells, report(cells), f"medians of {TURNS} turns")


if __name__ == "__main__":
    main()
