"""Runs in which processes die or hang, by kind and stage: survived, of those tried.

    python benchmarks/faults.py [RUN ...]

Each run is two small iterations on a Ray cluster of three nodes, on this machine, in which several
processes end, each in the call of one stage: killed before its work, or after it and before the
result is told, or stopped (SIGSTOP), which only its silence shows. A fault is survived if it struck
and policies (bit for bit), selections, evaluations and metrics of its run are those of an
undisturbed run, of the same settings, in one process. In the last runs nodes die at random moments,
with whatever they hold. The gap is the largest of the probe in all of these runs, against a limit
of 1e-4 nats. Writes results/faults.json and .md beside this file, as each run ends; of the
runs that RUN names alone the figures are new.
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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
os.environ["RAY_AUTH_MODE"] = "disabled"

from benchmarks.timing import RESULTS, prepare, table, write_results  # noqa: E402

prepare()

import dro_rl.cluster.processes  # noqa: E402
from tests.faults import (  # noqa: E402
    FOLDER,
    SIZE,
    Fault,
    MortalHost,
    differences,
    run_of,
    start_cluster,
)

SETTINGS = {  # what makes all stages come up
    "likelihood": (),
    "answers": ("reward=rewards/f1.py",),
    "fresh": ("training.weights=fresh",),
}
# Stages by their calls. What is skipped are the same call of other stages: one sync is at the
# start, two samples are an evaluation's, and who comes back loads weights and is probed.
ENGINES = {
    "likelihood": (
        ("evaluate", Fault("selector engine", "select")),
        ("sample", Fault("selector engine", "select", skip=2)),
        ("synchronise", Fault("selector engine", "load_weights", skip=3)),
        ("probe", Fault("selector engine", "probe", skip=3)),
        ("evaluate", Fault("generator engine", "answer")),
        ("synchronise", Fault("generator engine", "load_weights", skip=2)),
        ("probe", Fault("generator engine", "probe", skip=2)),
        ("score", Fault("reward service", "score")),
        ("synchronise", Fault("reward service", "load_weights", skip=2)),
        ("probe", Fault("reward service", "probe", skip=2)),
        ("evaluate", Fault("reward service", "log_likelihoods", skip=1)),
    ),
    "answers": (
        ("answer", Fault("generator engine", "answer", skip=1)),
        ("score", Fault("reward service", "score", skip=1)),
    ),
}
LEARNERS = (
    (
        ("learn", Fault("selector learner", "step", skip=1)),
        ("checkpoint", Fault("generator learner", "save")),
    ),
    (
        ("learn", Fault("generator learner", "step", skip=1)),
        ("checkpoint", Fault("selector learner", "save")),
    ),
    (
        ("synchronise", Fault("selector learner", "weights", skip=1)),
        ("synchronise", Fault("generator learner", "weights", skip=2)),
    ),
    (
        ("probe", Fault("selector learner", "probe", skip=1)),
        ("probe", Fault("generator learner", "probe", skip=2)),
    ),
)
FRESH = (("score and learn", Fault("generator learner", "step_and_score", skip=1)),)
STOPPED = (
    ("sample", Fault("selector engine", "select", skip=2)),
    ("evaluate", Fault("generator engine", "answer")),
    ("score", Fault("reward service", "score")),
    ("learn", Fault("selector learner", "step", skip=1)),
)
NODES = 3  # runs that lose one

Planted = list[tuple[str, Fault]]


@dataclass(frozen=True)
class Case:
    """What ended, when and how, and what came of it."""

    kind: str
    stage: str
    how: str
    why_not: str  # empty: survived


def runs() -> dict[str, tuple[str, Planted]]:
    """Settings and faults of each run that loses processes."""
    found: dict[str, tuple[str, Planted]] = {}
    for how, after in (("before", False), ("after", True)):

        def told(planted: Any, after: bool = after) -> Planted:
            return [(stage, replace(fault, after=after)) for stage, fault in planted]

        for settings, planted in ENGINES.items():
            found[f"engines-{settings}-{how}"] = settings, told(planted)
        for number, planted in enumerate(LEARNERS, 1):
            found[f"learners-{number}-{how}"] = "likelihood", told(planted)
        found[f"learners-fresh-{how}"] = "fresh", told(FRESH)
    stopped = [(stage, replace(fault, number=signal.SIGSTOP)) for stage, fault in STOPPED]
    return found | {"stopped": ("likelihood", stopped)}


class Bench:
    """A cluster, the undisturbed runs, and the probe's worst gap [nats]."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.gap, self.seconds = folder, 0.0, 60.0
        self.undisturbed = {
            name: run_of(folder / name, "cluster.mode=local", *overrides)[0]
            for name, overrides in SETTINGS.items()
        }
        self.nodes = start_cluster()
        for _ in range(2):
            self.nodes.add_node(**SIZE)

    def run(self, name: str, settings: str) -> tuple[str, str]:
        """Why a run is not as the undisturbed one, empty where it is; and what it said."""
        start = time.monotonic()
        on_ray = [f"cluster.address={self.nodes.address}", "cluster.max_failures=9"]
        heart = "cluster.heartbeat_timeout=10"
        try:
            run, said = run_of(self.folder / name, *SETTINGS[settings], *on_ray, heart)
        except Exception as error:  # whatever ended the run is the result
            return f"{type(error).__name__}: {error}", ""
        self.seconds = time.monotonic() - start
        rows = [json.loads(row) for row in (run / "metrics.jsonl").read_text().splitlines()]
        gaps = [v for row in rows for k, v in row.items() if k.endswith("/engine_gap")]
        self.gap = max(self.gap, *gaps)
        return ", ".join(differences(run, self.undisturbed[settings])), said

    def of_processes(self, name: str) -> list[Case]:
        settings, planted = runs()[name]
        for _, fault in planted:
            fault.plant()
        differ, said = self.run(name, settings)
        cases = []
        for stage, fault in planted:
            how = "killed after it" if fault.after else "killed before it"
            how = "stopped" if fault.number == signal.SIGSTOP else how
            lost = any(x.startswith(fault.role) and "lost in" in x for x in said.splitlines())
            why_not = differ if fault.struck and lost else differ or "nothing was lost"
            cases.append(Case(fault.role, stage, how, why_not))
            fault.path.unlink(missing_ok=True)
        return cases

    def of_a_node(self, name: str) -> list[Case]:
        """One beside the head, at a random moment; a new one takes its place."""
        after = random.uniform(0.2, 0.8) * self.seconds
        doomed = self.nodes.worker_nodes.copy().pop()
        killer = threading.Timer(after, self.nodes.remove_node, (doomed, False))
        killer.start()
        differ, said = self.run(name, "likelihood")
        killer.join()
        self.nodes.add_node(**SIZE)
        told = sum("lost in" in line for line in said.splitlines())
        why_not = differ or ("" if told else "nothing was lost")
        return [Case("node", f"after {after:.0f} s, {told} losses told", "killed", why_not)]


def report(found: dict[str, dict[str, Any]]) -> list[str]:
    cases = [Case(**case) for run in found.values() for case in run["cases"]]
    rows = []
    for kind, stage in dict.fromkeys((c.kind, c.stage) for c in cases if c.kind != "node"):
        own = [c for c in cases if (c.kind, c.stage) == (kind, stage)]
        rows.append([f"{kind}, {stage}", _won(own)])
    if nodes := [c for c in cases if c.kind == "node"]:
        rows.append(["node, at a random moment", _won(nodes)])
    gap = max(run["gap"] for run in found.values())
    return [
        table(["what ended, and in which stage", "survived / tried"], rows),
        f"Survived {_won(cases)} in {len(found)} runs; the probe's worst gap: {gap:.1e} nats.",
        *(f"Not survived: {c.kind}, {c.stage}, {c.how}: {c.why_not}" for c in cases if c.why_not),
    ]


def _won(cases: list[Case]) -> str:
    return f"{sum(not case.why_not for case in cases)} / {len(cases)}"


def main() -> None:
    everything = [*runs(), *(f"node-{i + 1}" for i in range(NODES))]
    named, kept = sys.argv[1:], RESULTS / "faults.json"
    found = json.loads(kept.read_text())["runs"] if named and kept.exists() else {}
    with tempfile.TemporaryDirectory() as scratch:
        planted = Path(scratch) / "planted"
        planted.mkdir()
        os.environ[FOLDER] = str(planted)
        dro_rl.cluster.processes.Host = MortalHost
        bench = Bench(Path(scratch))
        try:
            for name in named or everything:
                bench.gap = 0.0
                cases = bench.of_a_node(name) if "node" in name else bench.of_processes(name)
                found[name] = {
                    "cases": [asdict(case) for case in cases],
                    "gap": bench.gap,
                    "seconds": round(bench.seconds),
                }
                found = {name: found[name] for name in everything if name in found}
                write_results(
                    "faults",
                    {"runs": found},
                    report(found),
                    "survived: the run equals an undisturbed one bit for bit",
                )
        finally:
            bench.nodes.shutdown()
    sys.exit(any(case["why_not"] for run in found.values() for case in run["cases"]))


if __name__ == "__main__":
    main()
