"""Comparisons on disk, and what their runs leave, without a process."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from dro_rl.comparison.runs import Run
from dro_rl.tracking.run_directory import RunDirectory

BASE = {
    "data": {"kind": "facts"},
    "retrieval": {"kind": "given", "candidates": 8},
    "selector": {"model": "a/b"},
    "generator": {"model": "a/b"},
    "algorithm": {"kind": "dro", "samples": 4},
    "training": {"iterations": 2, "questions_per_iteration": 8},
}
ARMS = {"plain": {}, "centred": {"algorithm": {"baseline": "uniform"}}}


def writer(folder: Path) -> Callable[..., str]:
    """Writes a comparison beside its base recipe; returns its path."""

    def write(text: str | None = None, **changes) -> str:
        (folder / "base.yaml").write_text(yaml.safe_dump(BASE))
        settings = {
            "base": "base.yaml",
            "seeds": [0, 1],
            "output": str(folder / "out"),
            "arms": ARMS,
        } | changes
        kept = {k: v for k, v in settings.items() if v is not None}
        path = folder / "mine.yaml"
        path.write_text(text or yaml.safe_dump(kept, sort_keys=False))
        return str(path)

    return write


def fabricate(run: Run, ems=(0.25, 0.5, 0.75), seconds=2.0, questions=4) -> None:
    """What `dro-rl train` leaves of a run: the warm start and an iteration for each further EM,
    which is None where the iteration is not evaluated."""
    directory = RunDirectory.create(run.recipe)
    for iteration, em in enumerate(ems):
        if em is not None:
            _evaluate(directory, run.seed, iteration, em, questions)
        if iteration:
            drawn = pa.table({"sample": range(32)})
            pq.write_table(drawn, run.folder / "rollouts" / f"iteration-{iteration:04d}.parquet")
            (run.folder / "checkpoints" / f"iteration-{iteration:04d}").mkdir()
            directory.append_metrics({"iteration": iteration, "step": iteration})
            times = {"time/rollout": seconds, "time/learn": seconds, "time/evaluate": 100.0}
            directory.append_metrics({"iteration": iteration, **times})


def _evaluate(run: RunDirectory, seed: int, iteration: int, em: float, questions: int) -> None:
    right = round(em * questions)
    rows = [
        {"example": f"q{seed}-{i}", "em": float(i < right), "f1": float(i < right)}
        | {"bound": -2.0 + em + 0.1 * i}
        for i in range(questions)
    ]
    summary = {"iteration": iteration, "questions": questions, "em": em, "f1": em}
    summary |= {"gold_recall": None, "bound": -2.0 + em, "malformed": 0.0}
    run.write_evaluation(
        f"iteration-{iteration:04d}", summary | {"effective_sample_size": 3.0}, rows
    )
