"""From gradients to weights: optimiser, schedule, the steps that it must not take, its state."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from dro_rl import learner_state
from dro_rl.policy import sharding
from dro_rl.ranks import Ranks
from dro_rl.sections.training import TrainingSection
from dro_rl.step_totals import StepMetrics, Totals

Learn = Callable[[Sequence[int]], Totals]
"""Adds the gradient of some questions, by number, to what there is, and says what it came from."""


class Optimisation:
    """Of one policy, in AdamW's steps.

    Args:
        trainable: what learns, by name.
        groups: the same; apart is what is cut among the ranks in another way.
        training: the recipe's.
        learning_rate: peak.
        total_steps: of the whole run, for the schedule.
        ranks: that hold the policy together.
    """

    def __init__(
        self,
        trainable: Mapping[str, Tensor],
        groups: Sequence[Sequence[Tensor]],
        training: TrainingSection,
        learning_rate: float,
        total_steps: int,
        ranks: Ranks,
    ) -> None:
        self.trainable, self.training, self.ranks = trainable, training, ranks
        self.bad_steps = 0
        self.optimizer = torch.optim.AdamW(
            [{"params": list(group)} for group in groups],
            lr=learning_rate,
            betas=(0.9, 0.95),
            weight_decay=training.weight_decay,
            fused=True,
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, _schedule(training, total_steps)
        )

    def zero_grad(self) -> None:
        """Forget the gradient."""
        self.optimizer.zero_grad()

    def step(self, learn: Learn, names: Sequence[str]) -> StepMetrics:
        """Learn from all questions, in one optimiser step, unless that would spoil the weights.

        Args:
            learn: makes the gradient of some of them.
            names: of all.
        """
        totals, norm = self._gradient(learn, range(len(names)))
        learning_rate = float(self.schedule.get_last_lr()[0])
        bad: tuple[str, ...] = ()
        if not (math.isfinite(norm) and math.isfinite(totals.loss)):
            self.bad_steps += 1
            bad = tuple(name for i, name in enumerate(names) if not self._is_good(learn, i))
        elif totals.terms:
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()  # a skipped step too: the learning rate follows the data
        terms = max(totals.terms, 1)
        return StepMetrics(
            loss=totals.loss,
            grad_norm=norm,
            learning_rate=learning_rate,
            logp=totals.logp / terms,
            logp_gap=totals.gap / terms,
            clipped=totals.clipped,
            kl=totals.kl,
            value_loss=totals.value_loss,
            truncated_documents=totals.truncated_documents / terms,
            tokens=totals.tokens,
            bad_steps=self.bad_steps,
            bad_questions=bad,
        )

    def _gradient(self, learn: Learn, some: Sequence[int]) -> tuple[Totals, float]:
        """The gradient of some questions, clipped, and the norm that it had."""
        totals = learn(some)
        for parameter in sharding.uncut(self.trainable.values()):
            if parameter.grad is not None:
                self.ranks.add(parameter.grad)
        return totals, sharding.clip(self.trainable.values(), self.training.max_grad_norm)

    def _is_good(self, learn: Learn, number: int) -> bool:
        """Whether a question alone has a finite loss and gradient."""
        self.optimizer.zero_grad()
        totals, norm = self._gradient(learn, [number])
        return math.isfinite(norm) and math.isfinite(totals.loss)

    def save(self, folder: Path) -> None:
        """Write what `restore` reads: what learns, the optimiser's state, the schedule's."""
        facts = {"schedule": self.schedule.state_dict(), "bad_steps": self.bad_steps}
        learner_state.write(folder, self.ranks, self.trainable, self.optimizer, facts)

    def restore(self, folder: Path) -> None:
        """Continue from what `save` wrote, on any number of ranks.

        Raises:
            UserError: the state is not there or belongs to another model.
        """
        facts = learner_state.read(folder, self.ranks, self.trainable, self.optimizer)
        self.schedule.load_state_dict(facts["schedule"])
        for group, rate in zip(
            self.optimizer.param_groups, self.schedule.get_last_lr(), strict=True
        ):
            group["lr"] = rate
        self.bad_steps = facts["bad_steps"]


def _schedule(training: TrainingSection, total_steps: int) -> Callable[[int], float]:
    """Learning-rate factor of a step: linear warm-up, then constant or cosine to zero."""

    def factor(step: int) -> float:
        if step < training.warmup_steps:
            return (step + 1) / training.warmup_steps
        if training.schedule == "constant":
            return 1.0
        span = max(1, total_steps - training.warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - training.warmup_steps) / span)))

    return factor
