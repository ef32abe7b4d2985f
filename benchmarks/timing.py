"""What the speed benchmarks share: sides timed in turns, and results written beside them."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dro_rl.libraries import quiet_libraries
from dro_rl.rollout.environment import engine_environment, has_gpu
from dro_rl.sections.process import RolloutSection

RESULTS = Path(__file__).resolve().parent / "results"
TURNS = 5


def prepare() -> None:
    """Make this process fit for an engine; call it before torch is imported."""
    quiet_libraries()
    os.environ.update(engine_environment(RolloutSection(), threads=1))


@dataclass(frozen=True)
class Times:
    """Seconds of one side, a turn each."""

    seconds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def over(self, other: Times) -> float:
        """The median of the turns' ratios: what else the machine did in a turn hit both sides."""
        pairs = zip(self.seconds, other.seconds, strict=True)
        return statistics.median(a / b for a, b in pairs)

    def __str__(self) -> str:
        return f"{self.median:.2f} ({min(self.seconds):.2f}-{max(self.seconds):.2f})"


def in_turns(sides: dict[str, Callable[[], Any]], turns: int = TURNS) -> dict[str, Times]:
    """Each side so many times, one after the other, after a turn that warms all of them up."""
    times = {name: Times([]) for name in sides}
    for turn in range(turns + 1):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            _finish()
            if turn:
                times[name].seconds.append(time.perf_counter() - start)
    return times


def _finish() -> None:
    """A GPU works on after the call that asked it to has returned."""
    if has_gpu():
        import torch

        torch.cuda.synchronize()


def write_results(
    name: str,
    figures: dict[str, Any],
    tables: Sequence[str],
    timing: str = f"medians of {TURNS} turns, smallest and largest in brackets",
) -> None:
    """results/NAME.json and NAME.md; the tables are printed too."""
    import torch
    import vllm

    accelerator = torch.cuda.get_device_name() if has_gpu() else "no GPU"
    machine = f"{os.cpu_count()} cores {platform.machine().replace('_', '-')}, {accelerator}"
    about = {"machine": machine, "vllm": vllm.__version__, "torch": torch.__version__}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(
        json.dumps({**about, **figures}, indent=1, default=lambda t: t.seconds) + "\n"
    )
    head = f"`{name}.py`; " + "; ".join(f"{k} {v}" for k, v in about.items())
    text = "\n\n".join([f"{head}; {timing}.", *tables])
    (RESULTS / f"{name}.md").write_text(text + "\n")
    print(text)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, the first column of it text."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *rows])
