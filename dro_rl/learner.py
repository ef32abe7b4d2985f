"""One policy's M-step: forward, backward, weights. Selector and generator use the same class; what
differs is which completions of which prompts they learn.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from dro_rl import reading
from dro_rl.objective import Evaluated, Objective
from dro_rl.optimisation import Optimisation
from dro_rl.passes import Question
from dro_rl.policy import causal_lm, sharding
from dro_rl.policy.completion import AnyCompletion, Completion
from dro_rl.policy.lora import adapter_factors, add_lora
from dro_rl.policy.merging import merged_weights, save_policy
from dro_rl.policy.targets import Target, answer_target
from dro_rl.policy.weights import pack
from dro_rl.prompts import write_selection
from dro_rl.ranks import Place, Ranks
from dro_rl.recipe import PolicyName, Recipe
from dro_rl.records import Example, Rollout, ScoredRollout, WeightedRollout
from dro_rl.reward import Reward, load_reward
from dro_rl.sections.policy import PolicySection
from dro_rl.step_totals import StepMetrics, Totals

T = TypeVar("T")


class Learner:
    """Trains one policy.

    Args:
        recipe: the experiment.
        policy: which of its policies.
        model: folder or hub name to start from.
        total_steps: optimiser steps of the whole run, for the schedule.
        learning_rate: peak.
        place: this process's among the ranks that train the policy together: each calls the same
            methods with the same arguments, and gets the same from them.
        base: a loaded `model` that another learner adapts too, each with an adapter of its own.
    """

    def __init__(
        self,
        recipe: Recipe,
        policy: PolicyName,
        model: str,
        total_steps: int,
        learning_rate: float,
        place: Place | None = None,
        base: Any = None,
    ) -> None:
        torch.set_num_threads(recipe.cluster.threads)
        torch.manual_seed(recipe.training.seed)  # ranks make the same adapters
        self.recipe = recipe
        self.policy: PolicyName = policy
        self.ranks = Ranks(place, recipe.cluster.call_timeout)
        self.model: Any = self._load(model, base)
        self.objective = self._objective(model)
        self.reward: Reward | None = None  # of `step_and_score`
        self.trainable = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        groups = [list(self.trainable.values())]
        if (head := self.objective.value_head) is not None:
            self.trainable.update(head.named_parameters(prefix="value_head"))
            groups.append(list(head.parameters()))  # apart: it is not cut among ranks
        self.optimisation = Optimisation(
            self.trainable, groups, recipe.training, learning_rate, total_steps, self.ranks
        )

    def _load(self, name: str, base: Any) -> Any:
        """The model that learns, with its adapters, cut among the ranks."""
        section = self.section
        self.writer = causal_lm.prompt_writer(section, name)
        model = self.ranks.load_model(section, name, training=True) if base is None else base
        if section.lora:
            # Alone it has peft's own name, which TRL counts on.
            adapter = self.policy if self.recipe.shares_base else "default"
            model = add_lora(model, section, adapter)
        self.ranks.divide(model, section)
        return model

    def _objective(self, initial: str) -> Objective:
        return Objective(
            self.recipe, self.policy, self.model, self.writer, initial, ranks=self.ranks
        )

    @property
    def section(self) -> PolicySection:
        """The policy's, of a causal LM."""
        return self.recipe.causal_lm(self.policy)

    def ready(self) -> dict[str, float | str]:
        """Parameters and the way of the forward pass, for the start-up table."""
        return {
            "forward": self.objective.likelihood.describe(),
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "trainable": sum(p.numel() for p in self.trainable.values()),
            **({"ranks": self.ranks.size} if self.ranks.size > 1 else {}),
        }

    def limit(self, tokens: int) -> None:
        """Take at most so many tokens through the model at once from now on."""
        self.objective.passes.tokens = min(tokens, self.objective.passes.tokens)

    # --- the step -------------------------------------------------------------------------------

    def step(self, batch: Sequence[WeightedRollout]) -> StepMetrics:
        """One optimiser step on a batch of questions."""
        groups = [self.objective.targets(w) for w in batch]
        return self.step_on(groups, [w.rollout.example.id for w in batch])

    def step_on(
        self, groups: Sequence[Sequence[Target]], names: Sequence[str] | None = None
    ) -> StepMetrics:
        """One optimiser step on groups of loss terms, by default named by their numbers."""
        names = names or _numbers(groups)

        def learn(some: Sequence[int]) -> Totals:
            return self.backward([groups[i] for i in some], [names[i] for i in some])

        return self.optimisation.step(learn, names)

    def step_and_score(self, batch: Sequence[Rollout]) -> tuple[StepMetrics, list[ScoredRollout]]:
        """One optimiser step of the generator on questions that nobody has scored; see
        `Objective.scored_loss`.

        Returns:
            also the scored rollouts, at the weights before the step.
        """
        scored: list[ScoredRollout] = []

        def learn(some: Sequence[int]) -> Totals:
            totals, found = self._learn_and_score([batch[i] for i in some])
            scored.extend(found)
            return totals

        metrics = self.optimisation.step(learn, [r.example.id for r in batch])
        return metrics, scored[: len(batch)]

    def backward(
        self, groups: Sequence[Sequence[Target]], names: Sequence[str] | None = None
    ) -> Totals:
        """Add to the gradient that of the mean over groups of the sum of their terms.

        Passes take whole questions and each loss is divided by the batch's number of questions,
        so the gradient does not depend on where the batch is split.
        """
        names = names or _numbers(groups)

        def work(part: list[int]) -> Totals:
            targets = [t for i in part for t in groups[i]]
            return self._add(self.objective.loss(targets), targets, len(groups))

        return sum(self._through(groups, names, work), start=Totals())

    def _learn_and_score(self, batch: Sequence[Rollout]) -> tuple[Totals, list[ScoredRollout]]:
        """The same from rollouts whose rewards the forward pass gives."""
        reward = self.reward = self.reward or load_reward(self.recipe.reward)
        groups = [self.objective.answers(r) for r in batch]

        def work(part: list[int]) -> tuple[Totals, list[tuple[int, ScoredRollout]]]:
            targets = [t for i in part for t in groups[i]]
            some = [batch[i] for i in part]
            evaluated, scored = self.objective.scored_loss(reward, some, targets)
            totals = self._add(evaluated, targets, len(batch))
            return totals, list(zip(part, scored, strict=True))

        done = self._through(groups, [r.example.id for r in batch], work)
        found = dict(pair for _, pairs in done for pair in pairs)
        totals = sum((t for t, _ in done), start=Totals())
        return totals, [found[i] for i in range(len(batch))]

    def _through(
        self,
        groups: Sequence[Sequence[Target]],
        names: Sequence[str],
        work: Callable[[list[int]], T],
    ) -> list[T]:
        """What every pass over the groups gives; see `Passes.over`."""
        questions = [
            Question(name, [c for t in group for c in t.completions])
            for name, group in zip(names, groups, strict=True)
        ]

        def idle(number: int) -> None:
            evaluated = self.objective.loss(groups[number][:1])
            (0 * evaluated.parts.loss).backward()

        return self.objective.passes.over(questions, work, idle, self.optimisation.zero_grad)

    def _add(self, evaluated: Evaluated, targets: Sequence[Target], questions: int) -> Totals:
        """A pass's part of the batch's gradient, and of its sums."""
        (evaluated.parts.loss / questions).backward()
        tokens = self.objective.likelihood.cost([c for t in targets for c in t.completions])
        return Totals.of(evaluated, targets, questions, tokens)

    def score(self, rollouts: Sequence[Rollout]) -> list[list[float]]:
        """log p of every selection under the current weights [nats]: one list a question."""
        return reading.score(self.objective, rollouts)

    def values(self, rollouts: Sequence[Rollout]) -> list[tuple[tuple[float, ...], ...]]:
        """What PPO's value head gives before every token of every selection."""
        return reading.values(self.objective, rollouts)

    # --- weights and state ----------------------------------------------------------------------

    def weights(self) -> dict[str, np.ndarray]:
        """What the engines need: with LoRA the adapters alone, else (or above 4 bits, which engines
        do not have) all weights in the recipe's dtype; of several ranks the first has them.
        `Received` makes whole weights of either."""
        if self.section.lora and not self.section.lora.quantize:
            tensors = adapter_factors(self.model)
        else:
            dtype = causal_lm.forward_dtype(self.section)
            merged = merged_weights(self.model)
            tensors = ((n, w.detach().to(dtype)) for n, w in merged)
        whole = ((n, sharding.whole(w)) for n, w in tensors)
        if self.ranks.rank == 0:
            return pack(whole)
        deque(whole, maxlen=0)  # its rows of each, for the first
        return {}

    def probe(self, example: Example) -> tuple[AnyCompletion, list[float]]:
        """A fixed completion for an example, and log p of each of its tokens, unconstrained
        [nats]: what every engine that holds these weights must agree on."""
        k = self.recipe.selector.documents
        if self.policy == "selector":
            prompt = self.writer.select(example.question, example.candidates, k)
            token_ids = self.writer.completion(write_selection(range(k)))
            completion: AnyCompletion = Completion(prompt.token_ids, token_ids)
        else:
            completion = answer_target(self.writer, example, range(k), "first").completions[0]
        return completion, self.objective.tokens(completion)

    def save_policy(self, folder: Path) -> None:
        """The policy in Hugging Face format, LoRA folded in, in the recipe's dtype."""
        dtype = causal_lm.forward_dtype(self.section)
        writes = self.ranks.rank == 0
        tokenizer = self.writer.tokenizer
        save_policy(self.model, tokenizer, folder, dtype, writes=writes)

    def save(self, folder: Path) -> None:
        """The policy, and beside it what resuming needs."""
        self.save_policy(folder)
        self.save_state(folder)

    def save_state(self, folder: Path) -> None:
        """What `restore(folder)` reads, and nothing else: beside `folder`, which need not be there,
        under names that begin with the policy's and `.learner`."""
        self.optimisation.save(self._state(folder))

    def restore(self, folder: Path) -> None:
        """Continue from what `save_state(folder)` wrote, on any number of ranks.

        Raises:
            UserError: the state is not there or belongs to another model.
        """
        self.optimisation.restore(self._state(folder))

    def _state(self, folder: Path) -> Path:
        return folder.with_name(f"{self.policy}.learner")


def _numbers(groups: Sequence[object]) -> list[str]:
    return [f"question {i + 1} of the batch" for i in range(len(groups))]
