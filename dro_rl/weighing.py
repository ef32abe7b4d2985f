"""The E-step's last line: from the log-rewards of an iteration to both policies' coefficients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from dro_rl.algorithms import Group, weigh
from dro_rl.progress import Progress
from dro_rl.recipe import Recipe
from dro_rl.records import ScoredRollout, WeightedRollout
from dro_rl.sections.algorithm import PpoAlgorithm
from dro_rl.step_metrics import tell_unrewarded
from dro_rl.teams import Teams
from dro_rl.timeline import scored_tokens
from dro_rl.tracking.console import Advance

Stage = Callable[[str, int], AbstractContextManager[Advance]]
"""Opens a stage of the timeline and the console: its name, and how many questions it has."""


def weigh_rollouts(
    teams: Teams,
    at: Progress,
    scored: Sequence[ScoredRollout],
    stage: Stage,
    say: Callable[[str], object],
) -> list[WeightedRollout]:
    """The coefficients of every selection, with p_s/q where sampling was not from p_s itself.

    Args:
        at: its timeline and the running mean of rewards are brought up to date.
        scored: a batch, or the iteration's.
    """
    logps, values = _selector_logps(teams, at, scored, stage), _values(teams, at, scored, stage)
    ratios = _log_ratios(teams.recipe, logps, scored)
    groups = [
        Group(s.rollout.example.id, s.log_rewards, log_ratios, tuple(p), s.answer_tokens, v)
        for s, p, log_ratios, v in zip(scored, logps, ratios, values, strict=True)
    ]
    tell_unrewarded(groups, say)
    weighed, at.running_mean = weigh(teams.recipe.algorithm, groups, at.running_mean)
    return [
        WeightedRollout(s.rollout, c.selector, c.generator, c.tokens)
        for s, c in zip(scored, weighed, strict=True)
    ]


def _selector_logps(
    teams: Teams, at: Progress, scored: Sequence[ScoredRollout], stage: Stage
) -> Sequence[Sequence[float]]:
    """log p_s(z_i|x): what was sampled with, unless that was another distribution, or single
    documents, whose probabilities an engine knows less exactly than the learner."""
    known = "selector" in teams.learners
    exact = known and teams.recipe.decoding == "independent"
    if not (exact or (known and _corrects(teams.recipe))):
        return [[z.logp for z in s.rollout.selections] for s in scored]
    rollouts = [s.rollout for s in scored]
    at.timeline.add("logps", tokens=sum(map(scored_tokens, rollouts)))
    with stage("logps", len(scored)) as advance:
        return teams.selector_logps(rollouts, advance)


def _log_ratios(
    recipe: Recipe, logps: Sequence[Sequence[float]], scored: Sequence[ScoredRollout]
) -> Sequence[tuple[float, ...] | None]:
    if not _corrects(recipe):
        return [None] * len(scored)
    return [
        tuple(p - z.logp for p, z in zip(row, s.rollout.selections, strict=True))
        for row, s in zip(logps, scored, strict=True)
    ]


def _corrects(recipe: Recipe) -> bool:
    """Whether weights have p_s/q: a clipped ratio has it in the loss."""
    return not recipe.rollout.on_policy and recipe.algorithm.clips == "no"


def _values(
    teams: Teams, at: Progress, scored: Sequence[ScoredRollout], stage: Stage
) -> Sequence[tuple[tuple[float, ...], ...]]:
    """What PPO's value head gives before every token; zeros where there is none."""
    if not (isinstance(teams.recipe.algorithm, PpoAlgorithm) and "selector" in teams.learners):
        return [tuple((0.0,) * len(z.logps) for z in s.rollout.selections) for s in scored]
    rollouts = [s.rollout for s in scored]
    at.timeline.add("values", tokens=sum(map(scored_tokens, rollouts)))
    with stage("values", len(scored)) as advance:
        return teams.values(rollouts, advance)
