"""The recipe's `training`, `warmup`, `evaluation` and `tracking` sections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from dro_rl.errors import UserError
from dro_rl.sections.base import MAY_CHANGE, Section

Watched = Literal["em", "f1", "gold_recall", "bound", "reward"]
"""Figures of an evaluation by which an iteration is better than another."""


def best_of(summaries: Sequence[Mapping[str, Any]], metric: str) -> int:
    """The iteration of the best of a run's evaluations so far, the first of equal ones.

    Raises:
        UserError: the metric is not defined on the run's questions.
    """
    if any(summary[metric] is None for summary in summaries):
        raise UserError(
            f"{metric} is not defined on these questions (none has gold documents): name another "
            "in training.early_stop.metric or tracking.keep_best"
        )
    return max(summaries, key=lambda summary: summary[metric])["iteration"]


class EarlyStop(Section):
    metric: Watched = "bound"
    patience: PositiveInt = Field(
        default=1, description="evaluations without a new best before stopping"
    )

    def best(self, summaries: Sequence[Mapping[str, Any]]) -> int:
        """The iteration of the first best of a run's evaluations so far."""
        return best_of(summaries, self.metric)

    def stops(self, summaries: Sequence[Mapping[str, Any]]) -> bool:
        """Whether a run ends after these evaluations."""
        best = self.best(summaries)
        return sum(summary["iteration"] > best for summary in summaries) >= self.patience


class TrainingSection(Section):
    seed: int = Field(default=0, ge=0, le=2**31 - 1)
    iterations: Annotated[PositiveInt, MAY_CHANGE] = Field(
        default=5, description="one E-step and one M-step each"
    )
    questions_per_iteration: PositiveInt | Literal["all"] = "all"
    epochs: PositiveInt = Field(default=1, description="passes over an iteration's rollouts")
    batch_size: PositiveInt = Field(default=32, description="questions an optimiser step")
    tokens_per_microbatch: Annotated[PositiveInt, MAY_CHANGE] = Field(
        default=8192,
        description="tokens a forward pass, in whole questions (at least one); memory only",
    )
    weights: Literal["fresh", "frozen"] = Field(
        default="fresh",
        description="fresh: the generator's training pass also scores, at its weights of that "
        "step, where algorithm and reward allow it; frozen: all is scored before the first step",
    )
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = Field(default=0, ge=0, description="steps of linear learning-rate warm-up")
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: PositiveFloat = 1.0
    max_bad_steps: Annotated[int, MAY_CHANGE] = Field(
        default=3,
        ge=0,
        description="steps of a policy that a run may skip because their loss or gradient is not "
        "finite",
    )
    early_stop: Annotated[EarlyStop | None, MAY_CHANGE] = None
    checkpoint_seconds: Annotated[NonNegativeFloat, MAY_CHANGE] = Field(
        default=600,
        description="within an M-step, the learners' states are saved so often at most [s]; 0: "
        "after every step",
    )


class WarmupSection(Section):
    """Supervised warm-up: `dro-rl warmup` makes the policies that `dro-rl train` starts from."""

    pretraining: Literal["none", "facts", "corpus"] = Field(
        default="none",
        description="before it: the built-in world's curriculum, or language modelling",
    )
    pretraining_steps: PositiveInt | None = Field(
        default=None,
        description="most steps of it; by default until the curriculum is learned, or 1000 of "
        "language modelling",
    )
    pretraining_learning_rate: PositiveFloat = 1e-3
    steps: PositiveInt = Field(default=200, description="supervised steps of each policy")
    batch_size: PositiveInt = 32
    learning_rate: PositiveFloat = 1e-5
    teacher_temperature: PositiveFloat = Field(
        default=1.0,
        description="of the retriever's scores: the selector's teacher samples from them",
    )
    distractors: int = Field(
        default=1, ge=0, description="documents beside the gold ones for the generator"
    )
    negatives: Literal["candidates", "batch"] = Field(
        default="candidates",
        description="what an encoder learns to tell the gold documents from: the question's other "
        "candidates, or besides them the gold documents of the batch's other questions",
    )


class EvaluationSection(Section):
    every: Annotated[PositiveInt, MAY_CHANGE] = Field(
        default=1,
        description="iterations between evaluations; the start and the last iteration are always "
        "evaluated",
    )
    samples: PositiveInt = Field(default=8, description="selections a question for the bound")


class TrackingSection(Section):
    run_dir: str = "runs/dro"
    resume: Literal["never", "auto"] = Field(
        default="never",
        description="where run_dir holds a run already: never: refuse; auto: go on with it, so "
        "that one command begins a run and continues it",
    )
    keep_last: PositiveInt | None = Field(
        default=None,
        description="checkpoints that are kept; by default the policies of all iterations, with "
        "the optimiser states of the last two",
    )
    keep_best: Watched | None = Field(
        default=None,
        description="with keep_last: the policies of the iteration that is best by this are kept",
    )
    trackers: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = Field(
        default=["tensorboard"],
        description="dashboards that get the metrics as they come, beside metrics.jsonl",
    )
    project: str = Field(default="dro_rl", description="which dashboards file the run under")

    @model_validator(mode="after")
    def _something_to_keep(self) -> TrackingSection:
        if self.keep_best and not self.keep_last:
            raise ValueError("keep_best without keep_last: all are kept: leave it out")
        return self
