"""Runs in which a process dies or hangs, by kind and stage: survived, of those tried.

    python benchmarks/faults.py

Each case is a run of two small iterations on a Ray cluster of three nodes, on this machine. One
process ends in the call of one stage: killed before its work or after it, before the result is
told, or stopped (SIGSTOP), which only its silence shows. A case is survived if policies (bit for
bit), selections, evaluations and metrics are those of an undisturbed run, of the same settings, in
one process. At the end, nodes die at random moments, with whatever they hold. The gap is the
largest of the probe in all of these runs, against a limit of 1e-4 nats. Writes
results/faults.json and .md beside this file.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
os.environ["RAY_AUTH_MODE"] = "disabled"

from benchmarks.timing import prepare, table, write_results  # noqa: E402

prepare()

import dro_rl.cluster  # noqa: E402
from tests.faults import (  # noqa: E402
    FOLDER,
    SIZE,
    Fault,
    MortalHost,
    differences,
    run_of,
    start_cluster,
)

NODES = 3  # deaths of a node
SETTINGS = {  # what makes all stages come up
    "likelihood": (),
    "answers": ("reward=rewards/f1.py",),
    "fresh": ("training.weights=fresh",),
}
# By kind and stage: the call that the stage consists of, those of its name before it in a run (one
# is at the start, where there is a sync; two of an evaluation), and settings.
STAGES = {
    ("selector engine", "sample"): ("select", 2, "likelihood"),
    ("selector engine", "evaluate"): ("select", 0, "likelihood"),
    ("selector engine", "synchronise"): ("load_weights", 1, "likelihood"),
    ("selector engine", "probe"): ("probe", 1, "likelihood"),
    ("generator engine", "answer"): ("answer", 1, "answers"),
    ("generator engine", "evaluate"): ("answer", 0, "likelihood"),
    ("generator engine", "synchronise"): ("load_weights", 1, "likelihood"),
    ("generator engine", "probe"): ("probe", 1, "likelihood"),
    ("reward service", "score"): ("score", 1, "likelihood"),
    ("reward service", "evaluate"): ("log_likelihoods", 1, "likelihood"),
    ("reward service", "synchronise"): ("load_weights", 1, "likelihood"),
    ("reward service", "probe"): ("probe", 1, "likelihood"),
    ("selector learner", "learn"): ("step", 3, "likelihood"),
    ("selector learner", "synchronise"): ("weights", 1, "likelihood"),
    ("selector learner", "probe"): ("probe", 1, "likelihood"),
    ("selector learner", "checkpoint"): ("save", 1, "likelihood"),
    ("generator learner", "learn"): ("step", 1, "likelihood"),
    ("generator learner", "score and learn"): ("step_and_score", 3, "fresh"),
    ("generator learner", "synchronise"): ("weights", 1, "likelihood"),
    ("generator learner", "checkpoint"): ("save", 0, "likelihood"),
}
STOPPED = ("sample", "answer", "score", "learn")  # stages in which a process is stopped, too


@dataclass(frozen=True)
class Case:
    """What was done to a run, and what came of it; `gap` is the probe's [nats]."""

    kind: str
    stage: str
    how: str
    survived: bool
    why: str
    seconds: float
    gap: float


def faults() -> Iterator[tuple[str, str, str, Fault]]:
    for (kind, stage), (method, skip, settings) in STAGES.items():
        fault = Fault(kind, method, skip)
        yield stage, "killed before", settings, fault
        yield stage, "killed after", settings, replace(fault, after=True)
        if stage in STOPPED:
            yield stage, "stopped", settings, replace(fault, number=signal.SIGSTOP)


def run_case(
    folder: Path, baseline: Path, overrides: tuple[str, ...], kind: str, stage: str, how: str
) -> tuple[Case, str]:
    start, said, gap = time.monotonic(), "", float("nan")
    try:
        run, said = run_of(folder, *overrides)
        differ = differences(run, baseline)
        why = f"differs in {', '.join(differ)}" if differ else ""
        gap = worst_gap(run)
    except Exception as error:  # whatever ended the run is the result
        why = f"{type(error).__name__}: {error}"
    seconds = time.monotonic() - start
    print(f"{kind}, {stage}, {how}: {why or 'survived'} in {seconds:.0f} s", flush=True)
    return Case(kind, stage, how, not why, why, seconds, gap), said


def worst_gap(run: Path) -> float:
    rows = [json.loads(row) for row in (run / "metrics.jsonl").read_text().splitlines()]
    return max(v for row in rows for k, v in row.items() if k.endswith("/engine_gap"))


def of_processes(folder: Path, nodes: Any, baselines: dict[str, Path]) -> list[Case]:
    on_ray = (f"cluster.address={nodes.address}", "cluster.heartbeat_timeout=5")
    cases = []
    for i, (stage, how, settings, fault) in enumerate(faults()):
        fault.plant()
        overrides = (*SETTINGS[settings], *on_ray)
        case, said = run_case(
            folder / str(i), baselines[settings], overrides, fault.role, stage, how
        )
        if not (fault.struck and "lost in" in said) and case.survived:
            fault.path.unlink(missing_ok=True)
            case = replace(case, survived=False, why="nothing was lost")
        cases.append(case)
    return cases


def of_nodes(folder: Path, nodes: Any, baseline: Path, seconds: float) -> list[Case]:
    """A node beside the head, at a random moment of a run, and a new one in its place."""
    cases = []
    for i in range(NODES):
        wait = random.uniform(0.2, 0.8) * seconds
        killer = threading.Timer(wait, lambda: nodes.remove_node(nodes.list_all_nodes()[-1]))
        killer.start()
        overrides = (f"cluster.address={nodes.address}",)
        case, said = run_case(
            folder / f"node-{i}", baseline, overrides, "node", "any", f"killed after {wait:.1f} s"
        )
        killer.join()
        told = sum("lost in" in line for line in said.splitlines())
        cases.append(replace(case, how=f"{case.how}, {told} losses told"))
        nodes.add_node(**SIZE)
    return cases


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.environ[FOLDER] = str(folder)
        dro_rl.cluster.Host = MortalHost
        baselines = {
            name: run_of(folder / name, "cluster.mode=local", *overrides)[0]
            for name, overrides in SETTINGS.items()
        }
        nodes = start_cluster()
        try:
            nodes.add_node(**SIZE)
            nodes.add_node(**SIZE)
            cases = of_processes(folder, nodes, baselines)
            usual = sorted(case.seconds for case in cases)[len(cases) // 2]
            cases += of_nodes(folder, nodes, baselines["likelihood"], usual)
        finally:
            nodes.shutdown()
    rows = []
    for kind, stage in dict.fromkeys((case.kind, case.stage) for case in cases):
        own = [case for case in cases if (case.kind, case.stage) == (kind, stage)]
        won, longest = sum(case.survived for case in own), max(case.seconds for case in own)
        rows.append([f"{kind}, {stage}", f"{won} / {len(own)}", f"{longest:.0f} s"])
    won, gap = (
        sum(case.survived for case in cases),
        max(case.gap for case in cases if case.survived),
    )
    write_results(
        "faults",
        {"cases": [asdict(case) for case in cases], "survived": won, "gap": gap},
        [
            table(["what ends, and when", "survived / tried", "longest run"], rows),
            f"Survived {won} of {len(cases)}; the probe's worst gap: {gap:.1e} nats.",
            *(f"Not survived: {c.kind}, {c.stage}, {c.how}: {c.why}" for c in cases if c.why),
        ],
        "runs equal to an undisturbed one bit for bit",
    )
    sys.exit(won < len(cases))


if __name__ == "__main__":
    main()
