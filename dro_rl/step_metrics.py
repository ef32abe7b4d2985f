"""What `metrics.jsonl` says of steps and iterations; docs/metrics.md explains each name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from dro_rl.algorithms import Group
from dro_rl.algorithms.dro import effective_sample_size, importance_weights
from dro_rl.errors import UserError
from dro_rl.recipe import PolicyName, Recipe
from dro_rl.records import ScoredRollout, WeightedRollout
from dro_rl.reward.scoring import by_documents
from dro_rl.sections.algorithm import DroAlgorithm
from dro_rl.step_totals import StepMetrics


def rollout_metrics(
    recipe: Recipe,
    scored: Sequence[ScoredRollout],
    weighted: Sequence[WeightedRollout],
) -> dict[str, float]:
    """Of a batch. Weights are DRO's, or for another algorithm those in proportion to r."""
    weights = [
        w.generator
        if isinstance(recipe.algorithm, DroAlgorithm)
        else importance_weights(s.log_rewards)
        for s, w in zip(scored, weighted, strict=True)
    ]
    least = recipe.generator.prune
    lists = [by_documents(w.rollout, w.generator).values() for w in weighted]
    rewarded = [w for w in weights if any(w)]
    selections = [z for s in scored for z in s.rollout.selections]
    best = [max(s.log_rewards) for s in scored]
    return {
        "rollout/effective_sample_size": _mean([effective_sample_size(w) for w in rewarded]),
        "rollout/largest_weight": _mean([max(w) for w in rewarded]),
        "rollout/unrewarded": 1 - len(rewarded) / len(weights),
        "rollout/idle": _mean([not any(w.selector) for w in weighted]),
        **(
            {"rollout/pruned": _mean([sum(c for c in w if c < least) for w in lists])}
            if least
            else {}
        ),
        "rollout/malformed": _mean([z.malformed for z in selections]),
        "rollout/entropy": _mean([-z.logp for z in selections]),
        "rollout/truncated_documents": _mean([s.rollout.truncated_documents for s in scored]),
        "reward/best": _mean([b for b in best if b > -math.inf]),
    }


def learner_metrics(done: Mapping[PolicyName, StepMetrics]) -> dict[str, float]:
    return {
        f"{policy}/{k}": v
        for policy, m in done.items()
        for k, v in asdict(m).items()
        if k != "bad_questions"
    }


def tell_bad_steps(
    recipe: Recipe, done: Mapping[PolicyName, StepMetrics], say: Callable[[str], None]
) -> None:
    """Name the questions of a step that was skipped.

    Raises:
        UserError: a policy has had more of them than `training.max_bad_steps`.
    """
    for policy, m in done.items():
        if math.isfinite(m.loss) and math.isfinite(m.grad_norm):
            continue
        blamed = ", ".join(m.bad_questions[:3]) + (", ..." if len(m.bad_questions) > 3 else "")
        told = (
            f"a step of the {policy} was skipped: its loss ({m.loss:.3g}) or gradient "
            f"({m.grad_norm:.3g}) is not finite, because of "
            + (blamed or "all of its questions together")
        )
        if m.bad_steps <= recipe.training.max_bad_steps:
            say(f"  {told}")
            continue
        raise UserError(
            f"{told}. That makes {m.bad_steps} skipped steps, more than training.max_bad_steps "
            f"({recipe.training.max_bad_steps}): lower {policy}.learning_rate, or look at these "
            "questions. The weights are as before the step, and the last checkpoint is whole"
        )


def iteration_metrics(
    summary: Mapping[str, Any],
    gaps: Mapping[PolicyName, float],
    running_mean: float | None,
    prefix_cache_hits: float,
) -> dict[str, Any]:
    """Of an iteration as a whole, but for its time and memory.

    `summary` is that of its evaluation, empty where it has none.
    """
    row: dict[str, Any] = {f"evaluation/{k}": v for k, v in summary.items() if k != "iteration"}
    row |= {f"{policy}/engine_gap": gap for policy, gap in gaps.items()}
    if running_mean is not None:
        row["reward/running_mean"] = running_mean
    if not math.isnan(prefix_cache_hits):
        row["rollout/prefix_cache_hits"] = prefix_cache_hits
    return row


def tell_unrewarded(groups: Sequence[Group], say: Callable[[str], object]) -> None:
    """Say which questions had no reward in any selection."""
    named = [g.example for g in groups if max(g.log_rewards) == -math.inf]
    if named:
        shown = ", ".join(named[:3]) + (", ..." if len(named) > 3 else "")
        say(f"  {len(named)} of {len(groups)} questions had no reward in any selection: {shown}")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
