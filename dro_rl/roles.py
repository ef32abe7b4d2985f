"""The processes of a run by role: how many there are, and how they are started."""

from __future__ import annotations

import time
from collections.abc import Sequence

from dro_rl.cluster.rank_team import RankTeam
from dro_rl.cluster.team import Cluster, Team
from dro_rl.encoder_learner import learner_class
from dro_rl.recipe import PolicyName, Recipe
from dro_rl.reward.service import RewardService
from dro_rl.rollout.encoder_worker import worker_class
from dro_rl.rollout.worker import RolloutWorker
from dro_rl.sections.reward import in_words
from dro_rl.shared_base import start_shared
from dro_rl.teams import ENGINES, Teams
from dro_rl.tracking.console import Console


def start_teams(
    recipe: Recipe,
    cluster: Cluster,
    models: dict[PolicyName, str],
    console: Console,
    learner_steps: int | None,
) -> Teams:
    """Start every process side by side, and wait until all are ready.

    Args:
        recipe: the experiment.
        cluster: where.
        models: each policy's folder or hub name for the engines and the reward service.
        console: shows which are ready.
        learner_steps: optimiser steps of the run; None starts no learners (evaluation).
    """
    if recipe.shares_base and learner_steps is not None:
        engines, reward, learners, named = start_shared(recipe, cluster, learner_steps)
        return _ready(Teams(recipe, engines, reward, learners), named, console)
    steps = learner_steps or 0
    train: Sequence[PolicyName] = recipe.algorithm.train if learner_steps is not None else ()
    # Ranks first: Ray fills a GPU before it takes the next, and would leave them no room.
    ranked: list[PolicyName] = [p for p in train if recipe.policy(p).ranks > 1]
    started = {p: _start_learner(recipe, cluster, p, steps) for p in ranked}
    engines: dict[PolicyName, Team] = {
        p: cluster.start(
            *(ENGINES[p], worker_class(recipe, p), _copies(recipe, p), recipe, p, models[p]),
            gpus=_shards(recipe, p),
        )
        for p in recipe.policies
    }
    reward = cluster.start(
        f"reward service ({in_words(recipe.reward)})",  # so that one that hangs is named
        RewardService,
        recipe.cluster.reward_workers,
        recipe,
        models["generator"],
    )
    learners: dict[PolicyName, Team] = {
        p: started.get(p) or _start_learner(recipe, cluster, p, steps) for p in train
    }
    named: list[tuple[str, Team]] = [
        *((f"{n} learner", t) for n, t in learners.items()),
        ("reward service", reward),
        *((ENGINES[n], t) for n, t in engines.items()),
    ]
    return _ready(Teams(recipe, engines, reward, learners), named, console)


def _ready(teams: Teams, named: Sequence[tuple[str, Team]], console: Console) -> Teams:
    """Wait for the processes, and show what each says of itself."""
    console.say(f"starting {len(named)} roles (engines take up to a minute)")
    start = time.monotonic()
    for name, team in named:
        for about in team.ready():
            console.say(f"  {name}: " + ", ".join(f"{k} {_short(v)}" for k, v in about.items()))
    console.say(f"ready in {time.monotonic() - start:.1f} s")
    return teams


def _start_learner(recipe: Recipe, cluster: Cluster, name: PolicyName, steps: int) -> Team:
    section, role, cls = recipe.policy(name), f"{name} learner", learner_class(recipe, name)
    args = (recipe, name, section.model, steps, section.learning_rate)
    if section.ranks == 1:
        return cluster.start(role, cls, 1, *args, stateful=True)
    return RankTeam(cluster.start_ranks(role, cls, section.ranks, *args))


def process_count(recipe: Recipe, *, learners: bool) -> int:
    """How many processes `start_teams` makes that share GPUs with others."""
    engines = sum(_copies(recipe, p) for p in _served(recipe, learners) if _shards(recipe, p) == 1)
    if recipe.shares_base and learners:
        return engines + 1
    trained = sum(recipe.policy(p).ranks for p in recipe.algorithm.train) if learners else 0
    return engines + recipe.cluster.reward_workers + trained


def taken_gpus(recipe: Recipe, *, learners: bool) -> int:
    """GPUs that engines of several have for themselves."""
    served = _served(recipe, learners)
    return sum(_copies(recipe, p) * _shards(recipe, p) for p in served if _shards(recipe, p) > 1)


def _served(recipe: Recipe, learners: bool) -> Sequence[PolicyName]:
    """The policies that have engines of their own; on one base, the selector's serve both."""
    return ("selector",) if recipe.shares_base and learners else recipe.policies


def _copies(recipe: Recipe, policy: PolicyName) -> int:
    return recipe.rollout.workers if policy == "selector" else 1


def _shards(recipe: Recipe, policy: PolicyName) -> int:
    """GPUs of each engine of a policy."""
    return recipe.rollout.tensor_parallel if worker_class(recipe, policy) is RolloutWorker else 1


def rank_count(recipe: Recipe) -> int:
    """How many of them belong to learners of several."""
    ranks = [recipe.policy(p).ranks for p in recipe.algorithm.train]
    return sum(n for n in ranks if n > 1)


def _short(value: object) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)
