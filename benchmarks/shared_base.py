"""Memory of policies that are two adapters on one base, against two models of their own.

    python benchmarks/shared_base.py

Every process of a run is made by itself, one after the other, and does once what an iteration asks
of it: engines (vLLM) sample and take new weights, the reward service scores and takes them,
learners take a step and give their weights. Figures are its peak of resident memory. float32, LoRA
of rank 8, the built-in world; the base is the demo's selector (0.4M parameters), or random weights
of 50M; "weights" is the size of one copy.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.timing import prepare, table, write_results  # noqa: E402

prepare()

from benchmarks.memory import in_own_process, peak  # noqa: E402
from dro_rl.prompts import write_selection  # noqa: E402
from dro_rl.recipe import POLICIES, PolicyName, Recipe  # noqa: E402
from dro_rl.recipe_file import load_recipe  # noqa: E402

TINY = ROOT / "dro_rl" / "builtin" / "facts-selector"
LAYERS = {"50M": (640, 10)}  # hidden size, layers
SETTINGS = (
    "data.train_questions=16",
    "data.evaluation_questions=1",
    "rollout.max_sequences=32",
    "algorithm.samples=4",
    "selector.init=null",
    "generator.init=null",
    "warmup.pretraining=none",
    "selector.lora.rank=8",
    "generator.lora.rank=8",
)


def make_base(size: str, folder: Path) -> None:
    """Random weights that read the built-in world's tokens."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    hidden, layers = LAYERS[size]
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=hidden * 27 // 10,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def recipe_of(base: str, *, shared: bool) -> Recipe:
    own = ("generator.share_base_with=selector", "generator.model=null")
    way = own if shared else (f"generator.model={base}",)
    return load_recipe("demo.yaml", [*SETTINGS, f"selector.model={base}", *way])


# --- in a process of its own ---------------------------------------------------------------------


def engine(base: str, policy: PolicyName | None, given: Any) -> None:
    """Of one policy, or of both."""
    from dro_rl.rollout.worker import RolloutWorker
    from dro_rl.shared_base import SharedEngine

    recipe = recipe_of(base, shared=policy is None)
    if policy is None:
        workers = SharedEngine(recipe, base).parts
    else:
        workers = {policy: RolloutWorker(recipe, policy, base)}
    for name, worker in workers.items():
        for version in (0, 1):
            if version:
                worker.load_weights(given["weights"][name], version)
            if name == "selector":
                worker.select(given["examples"], 4, version)
            else:
                worker.answer(given["examples"], [(0, 1)] * len(given["examples"]))


def learner(base: str, policy: PolicyName | None, given: Any) -> Any:
    """Of one policy, or of both, which also scores; gives weights."""
    from dro_rl.learner import Learner
    from dro_rl.records import WeightedRollout
    from dro_rl.shared_base import SharedLearner

    recipe = recipe_of(base, shared=policy is None)
    even = (0.25,) * 4
    batch = [WeightedRollout(r, even, even) for r in given["rollouts"]]
    if policy is not None:
        one = Learner(recipe, policy, base, 10, 1e-3)
        one.step(batch)
        return {policy: one.weights()}
    both: Any = SharedLearner(recipe, 10)
    for name in POLICIES:
        getattr(both, f"{name}.step")(batch)
    getattr(both, "reward.score")(given["rollouts"])
    return {name: getattr(both, f"{name}.weights")() for name in POLICIES}


def reward(base: str, policy: PolicyName | None, given: Any) -> None:
    """Of two policies apart."""
    from dro_rl.reward.service import RewardService

    service = RewardService(recipe_of(base, shared=False), base)
    service.score(given["rollouts"])
    service.load_weights(given["weights"]["generator"], 1)
    service.score(given["rollouts"])


def rollouts(base: str, policy: PolicyName | None, given: Any) -> Any:
    """Groups of selections that name the first two documents in both orders."""
    from dro_rl.policy.causal_lm import prompt_writer
    from dro_rl.questions import load_questions
    from dro_rl.records import Rollout, Selection
    from dro_rl.tracking.console import Console

    recipe, made = recipe_of(base, shared=False), []
    writer = prompt_writer(recipe.selector, base)
    for example in load_questions(recipe, Console()).train:
        prompt = writer.select(example.question, example.candidates, 2)
        group = []
        for documents in ((0, 1), (1, 0)) * 2:
            text = write_selection(documents)
            ids = writer.completion(text)
            group.append(Selection(text, ids, (-1.0,) * len(ids), documents, False))
        made.append(Rollout(example, prompt.token_ids, tuple(group), 0))
    return made


def peak_of(work: Callable[..., Any], *args: Any) -> tuple[Any, float]:
    """What it gives, and the peak [GiB] of the process that it ran in."""
    found = in_own_process(_measured, work, args)
    print(f"{work.__name__} {args[1:2]}: {found[1]:.2f} GiB", file=sys.stderr, flush=True)
    return found


def _measured(work: Callable[..., Any], args: tuple) -> tuple[Any, float]:
    return work(*args), peak()


# --- here ----------------------------------------------------------------------------------------


def measure(base: str) -> dict[str, dict[str, float]]:
    """Peaks [GiB] by process, apart and shared."""
    for module in ("dro_rl.learner", "dro_rl.reward.service", "peft"):
        importlib.import_module(module)  # once: processes are forked, and each holds them
    made, _ = peak_of(rollouts, base, None, {})
    given: dict[str, Any] = {
        "rollouts": made,
        "examples": [r.example for r in made],
        "weights": {},
    }
    apart, shared = dict[str, float](), dict[str, float]()
    for policy in POLICIES:
        made, apart[f"{policy} learner"] = peak_of(learner, base, policy, given)
        given["weights"].update(made)
    _, apart["reward service"] = peak_of(reward, base, None, given)
    _, shared["learner of both"] = peak_of(learner, base, None, given)
    for policy in POLICIES:
        _, apart[f"{policy} engine"] = peak_of(engine, base, policy, given)
    _, shared["engine of both"] = peak_of(engine, base, None, given)
    return {"apart": apart, "shared": shared}


def main() -> None:
    figures: dict[str, Any] = {}
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for size in ("0.4M", *LAYERS):
            base = TINY
            if size in LAYERS:
                base = Path(scratch) / size
                in_own_process(make_base, size, base)
            weights = sum(f.stat().st_size for f in base.glob("*.safetensors")) / 2**30
            for way, found in measure(str(base)).items():
                figures[f"{size} {way}"] = {"weights": weights, **found}
                each = ", ".join(f"{k} {v:.2f}" for k, v in found.items())
                total = f"{sum(found.values()):.2f}"
                rows.append([f"{size}, {way}", f"{weights:.3f}", each, total])
            head = ["base", "weights [GiB]", "peak of each process [GiB]", "sum"]
            tables = [table(head, rows)]  # in a process of its own: it loads vLLM to name it
            in_own_process(write_results, "shared_base", figures, tables, "one process each")


if __name__ == "__main__":
    main()
