"""What a learner does, alone or on several ranks, for tests to compare."""

from __future__ import annotations

import pickle
import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from dro_rl.algorithms import Group, weigh
from dro_rl.learner import Learner
from dro_rl.policy import sharding
from dro_rl.policy.weights import unpack
from dro_rl.ranks import Place
from dro_rl.recipe import PolicyName, Recipe
from dro_rl.records import WeightedRollout
from tests.tiny import as_sampled, make_example, make_recipe, make_rollout

GROUPS = [
    [(0, 1), (2,), (0, 1), (3, 2)],
    [(4,), (1, 0), (3, 2), (4,)],
    [(2, 0), (1, 3), (2, 0), (1, 3)],
    [(1,), (2,), (3,), (0, 4)],
    [(4, 3), (4, 2), (4, 1), (4, 3)],
]
"""Five questions, in passes of one or two: ranks have different numbers of them."""

SMALL: dict[str, Any] = {"training": {"tokens_per_microbatch": 100, "max_grad_norm": 1.0}}
LORA = {"lora": {"rank": 4, "alpha": 6}}
LIVES: dict[str, tuple[PolicyName, dict[str, Any]]] = {
    "selector": ("selector", SMALL),
    "generator that scores": ("generator", SMALL),
    "value head": ("selector", {"algorithm": {"kind": "ppo", "gae_lambda": 0.9}, **SMALL}),
    "reference": ("selector", {"algorithm": {"kind": "grpo", "kl": 0.3}, **SMALL}),
    "lora": (
        "selector",
        {
            "selector": {**LORA, "gradient_checkpointing": True},
            "algorithm": {"kind": "grpo", "kl": 0.3},
            **SMALL,
        },
    ),
    "dense": ("generator", {"generator": {"likelihood": "dense", **LORA}, **SMALL}),
    "bfloat16": ("selector", {"selector": {"dtype": "bfloat16"}, **SMALL}),
}
RESUMED = ("generator that scores", "value head", "lora")


def recipe_of(life: str, folder: Path) -> Recipe:
    return make_recipe(folder, **LIVES[life][1])


def make_learner(life: str, folder: Path, place: Place | None = None) -> Learner:
    """At its first step; a value head says something."""
    recipe, policy = recipe_of(life, folder), LIVES[life][0]
    learner = Learner(recipe, policy, recipe.policy(policy).model, 20, 1e-2, place=place)
    if learner.objective.value_head is not None:
        weight = learner.objective.value_head.weight
        torch.nn.init.normal_(weight, std=0.3, generator=torch.manual_seed(5))
    return learner


def make_batch(learner: Learner) -> list[WeightedRollout]:
    """Five groups, sampled by a policy a little different from the learner's."""
    draw, batch = random.Random(1), []
    for number, chosen in enumerate(GROUPS):
        rollout = make_rollout(learner.recipe, make_example(number), chosen)
        values = ()
        if learner.policy == "selector":
            rollout = as_sampled(learner, rollout)
            moved = {z: draw.gauss(0, 0.15) for z in chosen}
            selections = tuple(
                replace(s, logps=(s.logps[0] + moved[s.documents], *s.logps[1:]))
                for s in rollout.selections
            )
            rollout = replace(rollout, selections=selections)
        if learner.objective.value_head is not None:
            (values,) = learner.values([rollout])
        rewards = {z: draw.gauss(-1, 1) for z in chosen}
        group = Group(f"q{number}", tuple(rewards[z] for z in chosen), values=values)
        (c,), _ = weigh(learner.recipe.algorithm, [group])
        batch.append(WeightedRollout(rollout, c.selector, c.generator, c.tokens))
    return batch


def live(learner: Learner, batch: list[WeightedRollout], folder: Path | None) -> dict[str, Any]:
    """Everything that a learner does in a run: two steps, the state saved between them."""
    rollouts = [w.rollout for w in batch]
    told: dict[str, Any] = {}
    if learner.policy == "selector":
        told["score"] = learner.score(rollouts)
    if learner.objective.value_head is not None:
        told["values"] = learner.values(rollouts)
    learner.backward([learner.objective.targets(w) for w in batch])
    told["gradient"] = gradient(learner)
    learner.optimisation.zero_grad()
    if learner.policy == "generator":
        told["first"], told["scored"] = learner.step_and_score(rollouts)
    else:
        told["first"] = learner.step(batch)
    if folder:
        learner.save(folder / learner.policy)
    return told | after(learner, batch)


def after(learner: Learner, batch: list[WeightedRollout]) -> dict[str, Any]:
    """What follows the state that is saved."""
    told: dict[str, Any] = {"second": learner.step(batch)}
    _, told["probe"] = learner.probe(make_example())
    told["weights"] = unpack(learner.weights())
    return told


def gradient(learner: Learner) -> dict[str, torch.Tensor]:
    """Of all rows, summed over ranks."""
    found = {}
    for name, parameter in learner.trainable.items():
        if parameter.grad is not None:
            whole = sharding.whole(parameter.grad).clone()
            if whole.shape == sharding.own(parameter).shape:
                learner.ranks.add(whole)
            found[name] = whole
    return found


# --- processes ------------------------------------------------------------------------------------


def on_ranks(size: int, folder: Path, saved: Path, earlier: Path | None) -> list[dict[Any, Any]]:
    """What `lives` tells on each of so many processes."""
    mp.spawn(_run, (size, _addresses(3 * len(LIVES)), folder, saved, earlier), nprocs=size)
    return [pickle.loads((saved / f"{rank}.pickle").read_bytes()) for rank in range(size)]


def _addresses(count: int) -> list[str]:
    """Where one group after another may meet: ports that are free, and that the system gives to
    nobody who asks for any, for they have to be free minutes later."""
    draw, found = random.Random(), list[str]()
    while len(set(found)) < count:
        port = draw.randrange(12000, 30000)
        with socket.socket() as one, suppress(OSError):
            one.bind(("127.0.0.1", port))
            found.append(f"tcp://127.0.0.1:{port}")
    return list(dict.fromkeys(found))


def _run(
    rank: int, size: int, addresses: list[str], folder: Path, saved: Path, earlier: Path | None
) -> None:
    places = (Place(rank, size, address) for address in addresses)
    told = lives(places, folder, saved, earlier)
    (saved / f"{rank}.pickle").write_bytes(pickle.dumps(told))


def lives(
    places: Iterator[Place], folder: Path, saved: Path, earlier: Path | None
) -> dict[Any, Any]:
    """All lives, with batches from `folder` and states into `saved`; then what becomes of fresh
    learners that are restored from these and from `earlier` states."""
    told: dict[Any, Any] = {}
    for life in LIVES:
        batch = pickle.loads((folder / f"{life}.batch").read_bytes())
        with _group(life, folder, next(places)) as learner:
            told[life] = live(learner, batch, saved / life)
        for states in (saved, earlier):
            if states and life in RESUMED:
                with _group(life, folder, next(places)) as learner:
                    learner.restore(states / life / learner.policy)
                    told[life, states.name] = after(learner, batch)
    return told


@contextmanager
def _group(life: str, folder: Path, place: Place) -> Iterator[Learner]:
    yield make_learner(life, folder, place)
    dist.barrier()
    dist.destroy_process_group()
