"""One policy's M-step: forward, backward, optimiser, schedule, state. Selector and generator
use the same class; what differs is which completions of which prompts they learn.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dro_rl.errors import UserError
from dro_rl.objective import Evaluated, Objective
from dro_rl.policy import causal_lm
from dro_rl.policy.likelihood import Completion, batches
from dro_rl.policy.targets import Target, answer_target
from dro_rl.policy.weights import pack
from dro_rl.prompts import write_selection
from dro_rl.recipe import PolicyName, Recipe
from dro_rl.records import Example, Rollout, ScoredRollout, WeightedRollout
from dro_rl.reward import Reward, load_reward


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """What one optimiser step did, before it: see docs/metrics.md.

    `logp` is the mean log-likelihood of the targets and `logp_gap` the mean distance of it from
    the log-probability they were sampled with [nats]: rounding in an iteration's first step, then
    how far the policy has moved from the one that sampled. `clipped`, `kl` and `value_loss` are
    averaged over questions; 0 for algorithms without.
    """

    loss: float
    grad_norm: float
    learning_rate: float
    logp: float
    logp_gap: float
    clipped: float
    kl: float
    value_loss: float
    truncated_documents: float
    tokens: int


@dataclass(slots=True)
class Totals:
    """Sums over the loss terms of a batch; `loss`, `clipped`, `kl` and `value_loss` are means over
    its questions."""

    loss: float = 0.0
    clipped: float = 0.0
    kl: float = 0.0
    value_loss: float = 0.0
    logp: float = 0.0
    gap: float = 0.0
    truncated_documents: int = 0
    terms: int = 0
    tokens: int = 0

    def add(self, evaluated: Evaluated, targets: Sequence[Target], questions: int) -> None:
        parts, logps = evaluated.parts, evaluated.logps
        self.loss += parts.loss.item() / questions
        self.clipped += parts.clipped / questions
        self.kl += parts.kl / questions
        self.value_loss += parts.value_loss / questions
        self.logp += sum(logps)
        self.gap += sum(abs(p - sum(t.logq)) for p, t in zip(logps, targets, strict=True) if t.logq)
        self.truncated_documents += sum(t.truncated_documents for t in targets)
        self.terms += len(targets)


class Learner:
    """Trains one policy.

    Args:
        recipe: the experiment.
        policy: which of its policies.
        model: folder or hub name to start from.
        total_steps: optimiser steps of the whole run, for the schedule.
        learning_rate: peak.
    """

    def __init__(
        self, recipe: Recipe, policy: PolicyName, model: str, total_steps: int, learning_rate: float
    ) -> None:
        torch.set_num_threads(recipe.cluster.threads)
        torch.manual_seed(recipe.training.seed)
        self.recipe, self.policy = recipe, policy
        self.section = recipe.policy(policy)
        self.writer = causal_lm.prompt_writer(self.section, model)
        self.model: Any = causal_lm.load_model(self.section, model, training=True)
        if self.section.lora:
            self.model = causal_lm.add_lora(self.model, self.section)
        self.objective = Objective(recipe, policy, self.model, self.writer, model)
        self.reward: Reward | None = None  # of `step_and_score`
        self.trainable = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        if self.objective.value_head is not None:
            head = self.objective.value_head.named_parameters(prefix="value_head")
            self.trainable.update(head)
        self.optimizer = torch.optim.AdamW(
            self.trainable.values(),
            lr=learning_rate,
            betas=(0.9, 0.95),
            weight_decay=recipe.training.weight_decay,
            fused=True,
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, _schedule(recipe.training, total_steps)
        )

    def ready(self) -> dict[str, float | str]:
        """Parameters and the way of the forward pass, for the start-up table."""
        return {
            "forward": self.objective.likelihood.describe(),
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "trainable": sum(p.numel() for p in self.trainable.values()),
        }

    # --- the step -------------------------------------------------------------------------------

    def step(self, batch: Sequence[WeightedRollout]) -> StepMetrics:
        """One optimiser step on a batch of questions."""
        return self.step_on([self.objective.targets(w) for w in batch])

    def step_on(self, groups: Sequence[Sequence[Target]]) -> StepMetrics:
        """One optimiser step on groups of loss terms."""
        return self._update(self.backward(groups))

    def step_and_score(self, batch: Sequence[Rollout]) -> tuple[StepMetrics, list[ScoredRollout]]:
        """One optimiser step of the generator on questions that nobody has scored; see
        `Objective.scored_loss`.

        Returns:
            also the scored rollouts, at the weights before the step.
        """
        self.reward = self.reward or load_reward(self.recipe.reward)
        totals, scored = Totals(), list[ScoredRollout]()
        groups = [self.objective.answers(r) for r in batch]
        for part in self._micro_batches(groups):
            targets = [t for g in groups[part] for t in g]
            evaluated, some = self.objective.scored_loss(self.reward, batch[part], targets)
            self._accumulate(evaluated, targets, len(batch), totals)
            scored += some
        return self._update(totals), scored

    def _update(self, totals: Totals) -> StepMetrics:
        """The optimiser step, on the gradient that is there."""
        norm = torch.nn.utils.clip_grad_norm_(
            self.trainable.values(), self.recipe.training.max_grad_norm
        )
        learning_rate = float(self.schedule.get_last_lr()[0])
        if not math.isfinite(norm):
            raise UserError(
                f"the gradient of the {self.policy} is not finite ({float(norm)}), and its weights "
                f"are as before this step: lower {self.policy}.learning_rate, or look for a "
                "question that the policy gives probability 0"
            )
        if totals.terms:
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        terms = max(totals.terms, 1)
        return StepMetrics(
            loss=totals.loss,
            grad_norm=float(norm),
            learning_rate=learning_rate,
            logp=totals.logp / terms,
            logp_gap=totals.gap / terms,
            clipped=totals.clipped,
            kl=totals.kl,
            value_loss=totals.value_loss,
            truncated_documents=totals.truncated_documents / terms,
            tokens=totals.tokens,
        )

    def backward(self, groups: Sequence[Sequence[Target]]) -> Totals:
        """Add to the gradient that of the mean over groups of the sum of their terms.

        Micro-batches hold whole questions and each loss is divided by the batch's number of
        questions, so the gradient does not depend on where the batch is split.
        """
        ordered = sorted((g for g in groups if g), key=_longest)  # equal lengths: less padding
        totals = Totals()
        for part in self._micro_batches(ordered):
            targets = [t for g in ordered[part] for t in g]
            self._accumulate(self.objective.loss(targets), targets, len(groups), totals)
        return totals

    def _micro_batches(self, groups: Sequence[Sequence[Target]]) -> Iterator[slice]:
        budget = self.recipe.training.tokens_per_microbatch
        return batches(self.objective.likelihood, [_completions(g) for g in groups], budget)

    def _accumulate(
        self, evaluated: Evaluated, targets: Sequence[Target], questions: int, totals: Totals
    ) -> None:
        (evaluated.parts.loss / questions).backward()
        totals.add(evaluated, targets, questions)
        totals.tokens += self.objective.likelihood.cost(_completions(targets))

    def score(self, rollouts: Sequence[Rollout]) -> list[list[float]]:
        """log p of every selection under the current weights [nats]: one list a question."""
        return self.objective.score(rollouts)

    def values(self, rollouts: Sequence[Rollout]) -> list[tuple[tuple[float, ...], ...]]:
        """What PPO's value head gives before every token of every selection."""
        return self.objective.values(rollouts)

    # --- weights and state ----------------------------------------------------------------------

    def weights(self) -> dict[str, np.ndarray]:
        """What the engines need: with LoRA the adapters alone, else all weights in the recipe's
        dtype. `causal_lm.Received` makes whole weights of either."""
        if self.section.lora:
            return pack(causal_lm.adapter_factors(self.model))
        dtype = causal_lm.forward_dtype(self.section)
        return pack((n, w.detach().to(dtype)) for n, w in causal_lm.merged_weights(self.model))

    def probe(self, example: Example) -> tuple[Completion, list[float]]:
        """A fixed completion for an example, and log p of each of its tokens, unconstrained
        [nats]: what every engine that holds these weights must agree on."""
        k = self.recipe.selector.documents
        if self.policy == "selector":
            prompt = self.writer.select(example.question, example.candidates, k)
            token_ids = self.writer.completion(write_selection(range(k)))
            completion = Completion(prompt.token_ids, token_ids)
        else:
            completion = answer_target(self.writer, example, range(k), "first").completions[0]
        return completion, self.objective.tokens(completion)

    def save_policy(self, folder: Path) -> None:
        """The policy in Hugging Face format, LoRA folded in, in the recipe's dtype."""
        dtype = causal_lm.forward_dtype(self.section)
        causal_lm.save_policy(self.model, self.writer.tokenizer, folder, dtype)

    def save(self, folder: Path) -> None:
        """The policy, and beside it what resuming needs."""
        self.save_policy(folder)
        self.save_state(folder)

    def save_state(self, folder: Path) -> None:
        """What `restore(folder)` reads, and nothing else: beside `folder`, which need not be there,
        under names that begin with the policy's and `.learner`."""
        torch.save(
            {
                "trainable": {n: p.detach().cpu() for n, p in self.trainable.items()},
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
                "rng": torch.get_rng_state(),
                "cuda_rng": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
            },
            folder.with_name(f"{self.policy}.learner.pt"),
        )

    def restore(self, folder: Path) -> None:
        """Continue from what `save_state(folder)` wrote.

        Raises:
            UserError: the state is not there or belongs to another model.
        """
        path = folder.with_name(f"{self.policy}.learner.pt")
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            with torch.no_grad():
                for name, parameter in self.trainable.items():
                    parameter.copy_(state["trainable"][name])
        except (OSError, KeyError, RuntimeError) as error:
            raise UserError(
                f"{path}: cannot be resumed from ({error}); resume an earlier iteration's folder "
                "or start a new run"
            ) from error
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["rng"])
        if torch.cuda.is_available() and state["cuda_rng"] is not None:
            torch.cuda.set_rng_state(state["cuda_rng"])


def _completions(targets: Sequence[Target]) -> list[Completion]:
    return [c for t in targets for c in t.completions]


def _longest(group: Sequence[Target]) -> int:
    return max(map(len, _completions(group)))


def _schedule(training: Any, total_steps: int):
    """Learning-rate factor of a step: linear warm-up, then constant or cosine to zero."""

    def factor(step: int) -> float:
        if step < training.warmup_steps:
            return (step + 1) / training.warmup_steps
        if training.schedule == "constant":
            return 1.0
        span = max(1, total_steps - training.warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - training.warmup_steps) / span)))

    return factor
