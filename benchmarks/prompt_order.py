"""Documents before the question or after it: what a prompt's order lets be computed once.

    python benchmarks/prompt_order.py [HOTPOT.jsonl]

Selectors' prompts, timed in turns on vLLM with an empty prefix cache: m samples of the prompts of
recipes/demo.yaml, whose questions have documents of their own, and of as many questions of which
four at a time are asked of the same documents. Samples have a fixed length, since the model was
trained in one of the orders.

Generators' prompts, counted: the tokens of the m prompts of a question, over those of their trie,
which shares every common beginning. Selections are drawn at random, or all begin with the same
document and go on at random, as those of a selector that has found one. HOTPOT.jsonl
(`data.kind: jsonl`) adds real documents and a tokenizer made from them.

Writes results/prompt_order.json and results/prompt_order.md beside this file.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.timing import in_turns, prepare, table, write_results  # noqa: E402

prepare()

from dro_rl.data import load_examples  # noqa: E402
from dro_rl.policy.scratch import train_tokenizer  # noqa: E402
from dro_rl.prompts import PLAIN, PromptWriter  # noqa: E402
from dro_rl.questions import load_questions, questions_of  # noqa: E402
from dro_rl.recipe_file import load_recipe  # noqa: E402
from dro_rl.records import Example  # noqa: E402
from dro_rl.rollout.vllm_engine import SamplingParams  # noqa: E402
from dro_rl.rollout.worker import RolloutWorker  # noqa: E402
from dro_rl.sections.data import JsonlData  # noqa: E402
from dro_rl.tracking.console import Console  # noqa: E402

SAMPLES, NEW = 8, 8
ORDERS = {
    "documents first": PLAIN,
    "question first": {
        "select": "Question: {question}\n{documents}\nSelection:",
        "answer": "Question: {question}\n{documents}\nAnswer:",
    },
}


def written(
    writer: PromptWriter, order: str, task: str, example: Example, chosen: Sequence[int]
) -> tuple[int, ...]:
    """A plain prompt in one of the orders, from the documents chosen."""
    documents = [example.candidates[i] for i in chosen]
    rows = [f"{d.title} [{i}]: {d.text}" for i, d in enumerate(documents, start=1)]
    text = ORDERS[order][task].format(documents="\n".join(rows), question=example.question)
    return tuple(writer.tokenizer(text)["input_ids"])


def selectors(worker: RolloutWorker, examples: Sequence[Example]) -> dict[str, Any]:
    """Median seconds and prefix-cache hits of a case in both orders."""
    parameters = SamplingParams(n=SAMPLES, max_tokens=NEW, ignore_eos=True, detokenize=False)
    llm, cache = worker._engine._llm, worker._engine._cache  # pyright: ignore
    hits = {}

    def sample(order: str) -> None:
        llm.reset_prefix_cache()
        llm.generate(prompts[order], parameters, use_tqdm=False)
        counted = cache.make_prefix_cache_stats()
        hits[order] = counted.hits / counted.queries

    prompts = {
        order: [
            {"prompt_token_ids": list(written(worker._writer, order, "select", e, range(8)))}
            for e in examples
        ]
        for order in ORDERS
    }
    seconds = in_turns({order: lambda order=order: sample(order) for order in ORDERS})
    return {"seconds": seconds, "prefix_cache_hits": hits}


def generators(writer: PromptWriter, examples: Sequence[Example]) -> dict[str, Any]:
    """Tokens over tokens of the trie, by how selections are drawn and by order."""
    figures = {}
    for k in (2, 5):
        for name, first in ((f"{k} at random", False), (f"{k}, the first the same", True)):
            figures[name] = {order: _shared(writer, order, examples, k, first) for order in ORDERS}
    return figures


def _shared(
    writer: PromptWriter, order: str, examples: Sequence[Example], k: int, first: bool
) -> float:
    dice, whole, trie = random.Random(0), 0, 0
    for example in examples:
        chosen = list(_selections(dice, len(example.candidates), k, first))
        prompts = [written(writer, order, "answer", example, z) for z in chosen]
        whole += sum(map(len, prompts))
        trie += len({p[:i] for p in prompts for i in range(1, len(p) + 1)})
    return whole / trie


def _selections(dice: random.Random, n: int, k: int, first: bool) -> Iterator[list[int]]:
    for _ in range(SAMPLES):
        chosen = dice.sample(range(n), k)
        yield [0, *[d for d in chosen if d][: k - 1]] if first else chosen


def real(path: str) -> tuple[PromptWriter, list[Example]]:
    """100 questions with their documents, and a tokenizer made from these."""
    examples = load_examples(JsonlData(kind="jsonl", path=path, evaluation_questions=1), 0).train[
        :100
    ]
    texts = [f"{d.title} {d.text} {e.question}" for e in examples for d in e.candidates]
    return PromptWriter(train_tokenizer(texts, 8000), "plain", 10**6), examples


def main() -> None:
    recipe = load_recipe("demo.yaml", [])
    examples = questions_of(recipe, load_questions(recipe, Console()).train, 1)
    same = [replace(e, candidates=examples[i // 4 * 4].candidates) for i, e in enumerate(examples)]
    worker = RolloutWorker(recipe, "selector", recipe.selector.model)
    timed = {
        "documents of its own": selectors(worker, examples),
        "four questions, the same documents": selectors(worker, same),
    }
    counted = {"facts": generators(worker._writer, examples)}
    for path in sys.argv[1:]:
        counted["HotpotQA"] = generators(*real(path))
    write_results(
        "prompt_order",
        {"selector": timed, "generator": counted},
        [
            f"Selector, {len(examples)} questions of the facts world with 8 documents, {SAMPLES} "
            f"samples of {NEW} tokens:",
            table(
                ["each question with", "order", "hits", "s"],
                [
                    [case, order, f"{figures['prefix_cache_hits'][order]:.1%}", str(times)]
                    for case, figures in timed.items()
                    for order, times in figures["seconds"].items()
                ],
            ),
            f"Generator, {SAMPLES} selections a question: tokens of the prompts over tokens of "
            "their trie:",
            table(
                ["documents, selections", *ORDERS],
                [
                    [f"{data}, {name}", *(f"{ratio[order]:.2f}" for order in ORDERS)]
                    for data, cases in counted.items()
                    for name, ratio in cases.items()
                ],
            ),
        ],
    )


if __name__ == "__main__":
    main()
