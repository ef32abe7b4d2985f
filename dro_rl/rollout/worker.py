"""The rollout worker: one policy's engine, in the project's own terms.

A Ray actor's class (`ray.remote(RolloutWorker)`), and used directly in local mode. This module
imports no torch, so that the worker sets the engine's environment variables before anything does.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from dro_rl.prompts import Prompt, read_selection, write_selection
from dro_rl.recipe import PolicyName, Recipe
from dro_rl.records import Example, Rollout, Selection
from dro_rl.rollout.engine import Sample, Usage
from dro_rl.rollout.environment import engine_environment

if TYPE_CHECKING:
    import numpy as np

    from dro_rl.policy.distinct import SelectionGrammar
    from dro_rl.rollout.engine import Engine
    from dro_rl.rollout.independent import IndependentRanker


class RolloutWorker:
    """Samples selections from the selector, or answers from the generator.

    Args:
        recipe: the experiment.
        policy: which of its policies.
        model_dir: the weights to start from, version 0: a folder or a hub name.
        engine: one that serves the policy as an adapter; otherwise the worker starts its own.
    """

    def __init__(
        self, recipe: Recipe, policy: PolicyName, model_dir: str, engine: Engine | None = None
    ) -> None:
        started = time.perf_counter()
        os.environ.update(engine_environment(recipe.rollout, recipe.cluster.threads))
        import torch

        from dro_rl.policy.causal_lm import prompt_writer, resolve_model
        from dro_rl.policy.merging import Received

        torch.set_num_threads(recipe.cluster.threads)  # local mode imported torch before us
        self._recipe = recipe
        section = recipe.causal_lm(policy)
        self._writer = prompt_writer(section, model_dir)
        self._received = Received(section) if engine is None else None
        self._engine: Engine = engine or _engine_class(recipe.rollout.engine)(
            resolve_model(model_dir),
            section=section,
            rollout=recipe.rollout,
            seed=recipe.training.seed,
        )
        self._grammars: dict[int, SelectionGrammar] = {}
        self._ranker: IndependentRanker | None = None
        self._version = 0
        self._start_seconds = time.perf_counter() - started

    def ready(self) -> dict[str, str | float]:
        """For the start-up table; `peak_memory` is this process's, resident [MiB]."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {
            "engine": self._engine.name,
            "version": self._engine.version,
            "start_seconds": self._start_seconds,
            "peak_memory": peak / (2**20 if sys.platform == "darwin" else 2**10),
        }

    def select(
        self,
        examples: Sequence[Example],
        samples: int,
        seed: int,
        greedy: bool = False,
        on_policy: bool = False,
    ) -> list[Rollout]:
        """A group of `samples` selections of each example.

        Sampled as the recipe says, or, `on_policy`, from the selector itself (temperature 1).

        The same call with the same weights gives the same rollouts.

        Raises:
            UserError: a question does not fit the context, or the recipe asks for distinct
                decoding and the tokenizer does not allow it.
        """
        k = self._recipe.selector.documents
        prompts = [self._writer.select(e.question, e.candidates, k) for e in examples]
        groups = self._selections(examples, prompts, samples, seed, greedy, on_policy)
        return [
            Rollout(
                example=example,
                prompt_ids=prompt.token_ids,
                selections=group,
                version=self._version,
                truncated_documents=prompt.truncated_documents,
            )
            for example, prompt, group in zip(examples, prompts, groups, strict=True)
        ]

    def _selections(
        self,
        examples: Sequence[Example],
        prompts: Sequence[Prompt],
        samples: int,
        seed: int,
        greedy: bool,
        on_policy: bool,
    ) -> Sequence[tuple[Selection, ...]]:
        k, decoding = self._recipe.selector.documents, self._recipe.decoding
        if decoding == "retriever":
            return [(self._by_score(e, k),) * samples for e in examples]
        if decoding == "independent":
            ranker = self._independent()
            if greedy or on_policy:  # for evaluation: selections of K documents
                return ranker.draw(examples, prompts, k, samples, seed, greedy=greedy)
            return ranker.single(examples, prompts, samples)
        distinct = decoding == "distinct"
        groups = self._engine.generate(
            [p.token_ids for p in prompts],
            samples=samples,
            seed=seed,
            greedy=greedy,
            on_policy=on_policy,
            grammars=[self._grammar(len(e.candidates)) for e in examples] if distinct else None,
        )
        return [
            tuple(self._selection(s, len(example.candidates)) for s in group)
            for example, group in zip(examples, groups, strict=True)
        ]

    def _by_score(self, example: Example, k: int) -> Selection:
        """The retriever's K best; a deterministic choice has probability 1."""
        order = sorted(range(len(example.candidates)), key=lambda i: -example.scores[i])[:k]
        text = write_selection(order)
        token_ids = self._writer.completion(text)
        return Selection(text, token_ids, (0.0,) * len(token_ids), tuple(order), False)

    def _independent(self) -> IndependentRanker:
        from dro_rl.rollout.independent import IndependentRanker

        if self._ranker is None:
            self._ranker = IndependentRanker(self._engine, self._writer)
        return self._ranker

    def answer(
        self, examples: Sequence[Example], selections: Sequence[tuple[int, ...]]
    ) -> list[str]:
        """The greedy answer to each example from its selected documents, in their order.

        Args:
            selections: 0-based indices into each example's candidates; none at all means an
                answer without documents. Equal prompts are answered once.
        Raises:
            UserError: a question does not fit the context.
        """
        prompts = [
            self._writer.answer(e.question, [e.candidates[i] for i in documents]).token_ids
            for e, documents in zip(examples, selections, strict=True)
        ]
        unique = list(dict.fromkeys(prompts))
        groups = self._engine.generate(unique, samples=1, seed=0, greedy=True)
        texts = [self._writer.decode(group[0].token_ids) for group in groups]
        answers = dict(zip(unique, texts, strict=True))
        return [answers[p] for p in prompts]

    def load_weights(self, weights: Mapping[str, np.ndarray], version: int) -> None:
        """Take over what `Learner.weights` gave."""
        from dro_rl.policy.weights import unpack

        tensors = unpack(weights)
        self._engine.load_weights(self._received.whole(tensors) if self._received else tensors)
        self._version = version

    def probe(self, prompt_ids: tuple[int, ...], completion_ids: tuple[int, ...]) -> list[float]:
        """log p of each token of a fixed completion [nats], to compare with the learner's."""
        return self._engine.score(prompt_ids, completion_ids)

    def statistics(self) -> Usage:
        """What the engine did since this was last asked."""
        usage, self._engine.usage = self._engine.usage, Usage()
        return usage

    def _selection(self, sample: Sample, n: int) -> Selection:
        text = self._writer.decode(sample.token_ids)
        documents, malformed = read_selection(text, n, self._recipe.selector.documents)
        return Selection(text, sample.token_ids, sample.logps, documents, malformed)

    def _grammar(self, n: int) -> SelectionGrammar:
        from dro_rl.policy.distinct import SelectionGrammar

        if n not in self._grammars:
            k = self._recipe.selector.documents
            self._grammars[n] = SelectionGrammar(self._writer, n, k)
        return self._grammars[n]


def _engine_class(name: str) -> Callable[..., Engine]:
    if name == "vllm":
        from dro_rl.rollout.vllm_engine import VllmEngine

        return VllmEngine
    from dro_rl.rollout.transformers_engine import TransformersEngine

    return TransformersEngine
