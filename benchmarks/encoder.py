"""What a small encoder learns on real HotpotQA or MuSiQue: untrained, supervised, by reinforcement.

    python benchmarks/encoder.py [--data hotpotqa|musique] [--conditional] [--seeds N]
                                 [--workers N] [--dtype bfloat16|float32] [--runs DIR] [ARM ...]

all-MiniLM-L6-v2 (recipes/hotpot_encoder.yaml, musique_encoder.yaml) and questions with their 10 or
20 paragraphs, from shared/data beside the checkout or DRO_RL_DATA. HotpotQA: to train on, the
training file and the validation file's first; to evaluate on, the validation file's last 500.
MuSiQue: its last 100, and the rest to train on. Of what there is to train on, the last 16 questions
are left for the evaluations that a run makes as it goes. Arms are bm25, untrained, fusion,
listwise, in_batch, dro, maxrl, grpo and rloo, by default all of them; the last four have the reward
answer_in_documents and see no gold label. All learn from as many batches of 32 questions. Figures
are the share of gold paragraphs among those picked by the last policy, greedily, and of questions
with all of them picked, the difference of the first to the untrained encoder with the p-value of a
paired bootstrap over questions, and, with --conditional, the first on bridge questions alone, where
the data say which those are. As many arms as --workers run at a time, on one thread and
with 8 GiB each. With
--runs DIR a command that was interrupted goes on where it was, and DIR keeps runs and policies.
Writes
results/encoder.json and .md beside this file, with _musique and _conditional in their names.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks.encoder_arms import (
    ARMS,
    HELD_OUT,
    LEARNED,
    Files,
    Scores,
    Setting,
    timed,
    write_data,
)
from benchmarks.timing import RESULTS, table


def main() -> None:
    asked = arguments()
    setting = Setting(asked.data, asked.conditional, asked.dtype)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = asked.runs.absolute() if asked.runs else Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        files = write_data(folder, setting)
        found: dict[str, list[Scores]] = {arm: [] for arm in asked.arms}
        runs = [(a, s) for s in range(asked.seeds) for a in asked.arms if not s or a in LEARNED]
        with ProcessPoolExecutor(asked.workers, get_context("spawn")) as pool:
            waits = {
                pool.submit(timed, arm, s, files, folder, setting): (arm, s) for arm, s in runs
            }
            for wait in as_completed(waits):
                (arm, seed), (scores, seconds) = waits[wait], wait.result()
                found[arm].append(scores)
                print(f"{arm} seed {seed}: {mean(scores):.4f}, {seconds:.0f} s", flush=True)
                write(asked, files, found, time.monotonic() - start)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("arms", nargs="*", default=ARMS, metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--data", choices=list(HELD_OUT), default="hotpotqa")
    parser.add_argument("--conditional", action="store_true")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--runs", type=Path)
    asked = parser.parse_args()
    if unknown := set(asked.arms) - set(ARMS):
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(ARMS)}")
    return asked


def write(
    asked: argparse.Namespace, files: Files, found: dict[str, list[Scores]], seconds: float
) -> None:
    figures, rows = {}, []
    untrained = found.get("untrained") or []
    bridge = bridges(files) if asked.conditional else set()
    for arm, runs in found.items():
        if not runs:
            continue
        recall = [mean(r) for r in runs]
        pairs = [float(np.mean([v == 1 for v in r.values()])) for r in runs]
        figures[arm] = {"gold_recall": recall, "full": pairs}
        row = [arm, str(len(runs)), spread(recall), spread(pairs), "", ""]
        if untrained and arm != "untrained":
            apart, p = bootstrap(untrained[0], runs)
            figures[arm] |= {"over_untrained": apart, "p": p}
            row[4:] = [f"{100 * apart:+.1f}", f"{p:.4f}" if p >= 1e-4 else "< 0.0001"]
        if bridge:
            figures[arm]["bridge"] = [mean({n: r[n] for n in bridge}) for r in runs]
            row.append(spread(figures[arm]["bridge"]))
        rows.append(row)
    head = ["arm", "seeds", "gold recall", "all gold", "over untrained", "p"]
    head += [f"bridge questions ({len(bridge)})"] if bridge else []
    name = "encoder" + "_musique" * (asked.data == "musique") + "_conditional" * asked.conditional
    command = " ".join(["encoder.py", *sys.argv[1:]]).replace(f" --runs {asked.runs}", "")
    text = (
        f"`{command}`: {seconds / 60:.0f} minutes, "
        f"{asked.workers} arms at a time on a core each, beside whatever else ran.\n\n"
        f"{table(head, rows)}\n"
    )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(figures, indent=1) + "\n")
    (RESULTS / f"{name}.md").write_text(text)
    print(text, flush=True)


def bridges(files: Files) -> set[str]:
    rows = [json.loads(line) for line in files.held_out.read_text().splitlines()]
    return {row["id"] for row in rows if row.get("type") == "bridge"}


def mean(scores: Scores) -> float:
    return float(np.mean(list(scores.values())))


def spread(values: Sequence[float]) -> str:
    mean = f"{100 * np.mean(values):.1f}"
    if len(values) == 1:
        return mean
    return f"{mean} ({100 * min(values):.1f}-{100 * max(values):.1f})"


def bootstrap(
    first: Scores, runs: Sequence[Scores], resamples: int = 20_000
) -> tuple[float, float]:
    """The mean difference of the seeds' mean to the first, and the two-sided p-value of a bootstrap
    over questions."""
    names = sorted(first)
    apart = np.mean([[r[n] - first[n] for n in names] for r in runs], axis=0)
    rng = np.random.default_rng(0)
    means = np.array(
        [apart[rng.integers(0, len(apart), len(apart))].mean() for _ in range(resamples)]
    )
    below = min(np.mean(means <= 0), np.mean(means >= 0))
    return float(apart.mean()), float(min(1, 2 * below))


if __name__ == "__main__":
    main()
