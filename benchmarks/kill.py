"""Kills a run at random moments, and compares what it comes to with a run that nobody killed.

    python benchmarks/kill.py [--ray] [--term] [--kills N] [--seed S]

SIGKILL hits the process of the command at a moment drawn from [0, an iteration's seconds] after it
has saved something new, and the same command continues; with `--ray`, Ray's processes go with it.
With `--term` it is SIGTERM, and the seconds until the process has ended are taken. A run that comes
to its end is compared in everything but the time it took (metrics, rollouts, evaluations, policies,
what is remembered), bit by bit, and another one is begun until there were N kills, 20 by default.
Learners save after every step. Writes results/kill.json and .md beside this
file (with _ray and _term in their names) after each run, and exits with 1 where one differs.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.timing import table, write_results  # noqa: E402
from tests.commands import iterations, start  # noqa: E402
from tests.local_runs import TINY  # noqa: E402
from tests.outcomes import differences  # noqa: E402

ITERATIONS = 4


@dataclass
class Figures:
    """What came of the kills so far, and where they hit."""

    seed: int
    mode: str
    number: signal.Signals
    equal: int = 0
    different: list[str] = field(default_factory=list)
    where: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0  # seconds from the signal to the end of the process

    @property
    def runs(self) -> int:
        """That came to their end."""
        return self.equal + len(self.different)

    def write(self) -> None:
        told = (
            f"{self.where.total()} times {self.number.name} in {self.runs} runs of {ITERATIONS} "
            f"iterations (cluster.mode: {self.mode}, seed {self.seed}): {self.equal} ended as the "
            f"run that was not killed, {len(self.different)} did not. The process was gone within "
            f"{self.slowest:.1f} s."
        )
        places = [[place, str(count)] for place, count in self.where.most_common()]
        figures = {**vars(self), "kills": self.where.total(), "runs": self.runs}
        tables = [told, *self.different, table(["killed", "times"], places)]
        name = "kill" + "_ray" * (self.mode == "ray") + "_term" * (self.number == signal.SIGTERM)
        write_results(name, figures, tables, "one thread a process")


def words(run: Path, mode: str) -> tuple[str, ...]:
    return (
        *("train", "recipes/demo.yaml", f"cluster.mode={mode}", "rollout.engine=transformers"),
        *(*TINY, f"training.iterations={ITERATIONS}", "training.checkpoint_seconds=0"),
        *("tracking.resume=auto", f"tracking.run_dir={run}"),
    )


def saves(run: Path) -> list[str]:
    """Names of what has been saved, the newest last."""
    found = (run / "checkpoints").glob("iteration-*")
    return sorted(p.name for p in found if p.suffix != ".partial")


def finish(process: subprocess.Popen[str]) -> None:
    out, err = process.communicate()
    if process.returncode:
        raise RuntimeError(f"exit code {process.returncode}\n{out}\n{err}")


def killed(run: Path, figures: Figures, span: float, moments: random.Random) -> str | None:
    """Begin or continue the run and kill it; where it stood, None where it was done before."""
    before = saves(run)
    process = start(*words(run, figures.mode))
    while saves(run)[-1:] == before[-1:] and process.poll() is None:
        time.sleep(0.005)
    time.sleep(moments.uniform(0, span))
    if process.poll() is not None:
        finish(process)
        return None
    process.send_signal(figures.number)
    sent = time.monotonic()
    process.wait()
    figures.slowest = max(figures.slowest, time.monotonic() - sent)
    process.communicate()
    return stood(run)


def stood(run: Path) -> str:
    """The stage that was at work, as far as the files tell."""
    last = (saves(run) or ["iteration-0000"])[-1]
    iteration = int(last[10:14])
    half = any((run / "checkpoints").glob("*.partial"))
    if half:
        return "while saving"
    if "-part-" not in last:
        return "sampling, or the report"
    if (run / "evaluation" / f"iteration-{iteration:04d}.json").exists():
        return "after an evaluation"
    if (run / "rollouts" / f"iteration-{iteration:04d}.parquet").exists():
        return "giving weights to engines, or evaluating"
    return "before the first step" if last.endswith("0001") else "between steps"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--term", action="store_true")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    options = parser.parse_args()
    mode, moments = "ray" if options.ray else "local", random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        straight = Path(folder) / "straight"
        finish(start(*words(straight, mode)))
        rows = iterations(straight)
        span = sum(v for r in rows for k, v in r.items() if k.startswith("time/")) / ITERATIONS
        number = signal.SIGTERM if options.term else signal.SIGKILL
        figures = Figures(options.seed, mode, number)
        where = figures.where
        while where.total() < options.kills:
            run = Path(folder) / f"run-{figures.runs}"
            while (place := killed(run, figures, span, moments)) is not None:
                where[place] += 1
                print(f"kill {where.total()}: {place}", flush=True)
                if where.total() >= options.kills:
                    finish(start(*words(run, mode)))
                    break
            apart = differences(run, straight)
            figures.equal += not apart
            if apart:
                figures.different.append(f"{run.name}: {', '.join(apart)}")
            figures.write()
    if figures.different:
        sys.exit(1)


if __name__ == "__main__":
    main()
