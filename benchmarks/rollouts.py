"""How fast rollouts are: against transformers, and against vLLM without us.

    python benchmarks/rollouts.py

Everything runs in this process, in turns; the prefix cache is empty before each. A first figure is
that of 8 samples of 20 tokens for prompts of 2,000, by `VllmEngine`, by transformers' `generate`
with `num_return_sequences`, and by our `TransformersEngine`, which computes a prompt once. The
second is that of `RolloutWorker.select` on an iteration of recipes/demo.yaml (256 questions, 8
samples), in one call and in calls of 64 questions, against a bare `LLM.generate` of the same
prompts: overhead is largest for a model as small as that.

Writes results/rollouts.json and results/rollouts.md beside this file, and exits with 1 where vLLM
is less than `FASTER` times as fast as `generate`, or the worker's overhead exceeds `OVERHEAD`.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.timing import in_turns, prepare, table, write_results  # noqa: E402

prepare()

import torch  # noqa: E402
from transformers import LlamaForCausalLM  # noqa: E402

from dro_rl.questions import load_questions, questions_of  # noqa: E402
from dro_rl.recipe_file import load_recipe  # noqa: E402
from dro_rl.rollout.transformers_engine import TransformersEngine  # noqa: E402
from dro_rl.rollout.vllm_engine import SamplingParams, VllmEngine  # noqa: E402
from dro_rl.rollout.worker import RolloutWorker  # noqa: E402
from dro_rl.sections.policy import PolicySection  # noqa: E402
from dro_rl.sections.process import RolloutSection  # noqa: E402
from dro_rl.tracking.console import Console  # noqa: E402
from tests.models import make_llama, make_tokenizer  # noqa: E402

SAMPLES = 8
PROMPT, NEW, PROMPTS = 2000, 20, 8
CALL = 64
FASTER, OVERHEAD = 10.0, 0.05


def against_transformers(folder: str) -> dict[str, Any]:
    """Seconds for `PROMPTS` prompts that have nothing in common."""
    model = make_llama(
        Path(folder),
        tokenizer=make_tokenizer(),
        hidden=256,
        layers=4,
        heads=4,
        context=PROMPT + NEW,
        scale=1,
    )
    section = PolicySection(
        model=folder, dtype="float32", max_length=PROMPT + NEW, max_new_tokens=NEW
    )
    vllm, plain = (
        engine(folder, section=section, rollout=RolloutSection(), seed=0)
        for engine in (VllmEngine, TransformersEngine)
    )
    draw = random.Random(0)
    prompts = [tuple(draw.choices(range(3, 300), k=PROMPT)) for _ in range(PROMPTS)]
    seconds = in_turns(
        {
            "transformers.generate": lambda: generate(model, prompts),
            "TransformersEngine": lambda: plain.generate(prompts, samples=SAMPLES, seed=0),
            "VllmEngine": lambda: vllm.generate(prompts, samples=SAMPLES, seed=0),
        }
    )
    peer = seconds["transformers.generate"]
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": seconds,
        "times_as_fast": {name: peer.over(t) for name, t in seconds.items()},
        "prefix_cache_hits": vllm.usage.prefix_cache_hits,
    }


def generate(model: LlamaForCausalLM, prompts: Sequence[tuple[int, ...]]) -> None:
    """A prompt at a time: 32 sequences of 2,000 tokens at once take gigabytes."""
    for prompt in prompts:
        model.generate(
            torch.tensor([prompt]),
            do_sample=True,
            top_k=0,
            num_return_sequences=SAMPLES,
            max_new_tokens=NEW,
            pad_token_id=0,
        )


def overhead() -> dict[str, Any]:
    """Seconds for an iteration of the demo's recipe."""
    recipe = load_recipe("demo.yaml", [])
    examples = questions_of(recipe, load_questions(recipe, Console()).train, 1)
    worker = RolloutWorker(recipe, "selector", recipe.selector.model)
    llm = worker._engine._llm  # pyright: ignore
    parameters = SamplingParams(
        n=SAMPLES,
        max_tokens=recipe.selector.max_new_tokens,
        logprobs=0,
        flat_logprobs=True,
        detokenize=False,
    )
    prompts = [{"prompt_token_ids": list(r.prompt_ids)} for r in worker.select(examples, 1, 0)]

    def bare() -> None:
        llm.reset_prefix_cache()
        torch.manual_seed(0)
        llm.generate(prompts, parameters, use_tqdm=False)

    def in_calls() -> None:
        for i in range(0, len(examples), CALL):
            worker.select(examples[i : i + CALL], SAMPLES, i)

    seconds = in_turns(
        {
            "LLM.generate": bare,
            "RolloutWorker.select": lambda: worker.select(examples, SAMPLES, 0),
            f"the same in calls of {CALL} questions": in_calls,
        }
    )
    return {
        "questions": len(examples),
        "prompt_tokens": statistics.mean(len(p["prompt_token_ids"]) for p in prompts),
        "seconds": seconds,
        "more_than_bare": {n: t.over(seconds["LLM.generate"]) - 1 for n, t in seconds.items()},
        "prefix_cache_hits": worker.statistics().prefix_cache_hits,
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        peers = against_transformers(folder)
    ours = overhead()
    write_results(
        "rollouts",
        {"against transformers": peers, "overhead": ours},
        [
            f"{PROMPTS} prompts of {PROMPT} tokens, {SAMPLES} samples of {NEW} tokens each, Llama "
            f"of {peers['parameters'] / 1e6:.1f}M parameters; {peers['prefix_cache_hits']:.1%} of "
            "the prompts' tokens read from vLLM's cache:",
            table(
                ["", "s", "times as fast"],
                [
                    [name, str(times), f"{peers['times_as_fast'][name]:.1f}"]
                    for name, times in peers["seconds"].items()
                ],
            ),
            f"{ours['questions']} questions of recipes/demo.yaml, {SAMPLES} selections each, "
            f"prompts of {ours['prompt_tokens']:.0f} tokens, Llama of 0.38M parameters; "
            f"{ours['prefix_cache_hits']:.1%} read from the cache:",
            table(
                ["", "s", "against bare vLLM"],
                [
                    [name, str(times), f"{ours['more_than_bare'][name]:+.1%}"]
                    for name, times in ours["seconds"].items()
                ],
            ),
        ],
    )
    more = ours["more_than_bare"]["RolloutWorker.select"]
    if peers["times_as_fast"]["VllmEngine"] < FASTER or more > OVERHEAD:
        sys.exit(1)


if __name__ == "__main__":
    main()
