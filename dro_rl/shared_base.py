"""Both policies on one base model (`generator.share_base_with: selector`).

Apart, a run holds five copies of it: two engines, two learners and the reward service. Here there
are two: an engine that serves each policy as a LoRA adapter, and a process that trains both
adapters and scores with the generator's. Nothing else knows: a `Part` of such a process is a team
like any other.

The module imports no torch, so that an engine's process sets its environment variables first.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

from dro_rl.cluster.team import Cluster, Team
from dro_rl.cluster.team_work import Check, Done
from dro_rl.hardware import Device, Memory
from dro_rl.recipe import POLICIES, PolicyName, Recipe
from dro_rl.rollout.environment import engine_environment
from dro_rl.sections.reward import in_words


class Part:
    """One worker of those that each process of a team holds."""

    def __init__(self, team: Team, name: str) -> None:
        self.team, self.name = team, name

    def ready(self) -> list[Any]:
        return self.team.ready()

    def submit(self, method: str, *args: Any) -> Callable[[], list[Any]]:
        return self.team.submit(self._of(method), *args)

    def begin(self, method: str, calls: Sequence[tuple]) -> Callable[[], list[Any]]:
        return self.team.begin(self._of(method), calls)

    def leave(self, method: str) -> Any:
        return self.team.leave(self._of(method))

    def on_return(
        self, method: str, args: tuple, check: Check | None = None, *, anew: bool = False
    ) -> None:
        self.team.on_return(self._of(method), args, check, anew=anew)

    def forget(self) -> None:
        self.team.forget()

    def restart(self) -> None:
        self.team.restart()

    def map(self, method: str, chunks: Sequence[tuple], done: Done) -> list[Any]:
        return self.team.map(self._of(method), chunks, done)

    def devices(self) -> list[Device]:
        return self.team.devices()

    def memory(self) -> list[Memory]:
        return self.team.memory()

    def _of(self, method: str) -> str:
        return f"{self.name}.{method}"


def apart(teams: Iterable[Team]) -> list[Team]:
    """One for all that are parts of the same processes."""
    return list({id(t.team if isinstance(t, Part) else t): t for t in teams}.values())


class Scorer(Part):
    """The reward service in the process of its generator's learner."""

    def on_return(
        self, method: str, args: tuple, check: Check | None = None, *, anew: bool = False
    ) -> None:
        """Its weights are the learner's, and come back with them."""


class Parts:
    """Workers of one process, which take turns: its method "selector.step" is `step` of the
    selector's."""

    def __init__(self) -> None:
        self.parts: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Callable[..., Any]:
        part, dot, method = name.partition(".")
        if not dot:
            raise AttributeError(name)
        return partial(self._call, part, method)

    def _call(self, part: str, method: str, *args: Any) -> Any:
        with self._turn(part):
            return getattr(self.parts[part], method)(*args)

    @contextmanager
    def _turn(self, part: str) -> Iterator[None]:
        """The process in the state that a part's methods need."""
        yield


class SharedEngine(Parts):
    """A rollout worker of each policy, on one engine."""

    def __init__(self, recipe: Recipe, model: str) -> None:
        super().__init__()
        start = time.perf_counter()
        os.environ.update(engine_environment(recipe.rollout, recipe.cluster.threads))
        from dro_rl.policy.causal_lm import resolve_model
        from dro_rl.rollout.worker import RolloutWorker

        if recipe.rollout.engine == "vllm":
            from dro_rl.rollout.vllm_adapters import adapter_engines
        else:
            from dro_rl.rollout.transformers_adapters import adapter_engines

        for policy, engine in adapter_engines(recipe, resolve_model(model)).items():
            self.parts[policy] = RolloutWorker(recipe, policy, model, engine)
        self.start_seconds = time.perf_counter() - start

    def ready(self) -> dict[str, str | float]:
        """See `RolloutWorker.ready`."""
        return {**self.parts["selector"].ready(), "start_seconds": self.start_seconds}


class SharedLearner(Parts):
    """A learner of each policy that learns, and the reward service, on one model.

    Args:
        recipe: the experiment.
        steps: optimiser steps of the whole run.
    """

    def __init__(self, recipe: Recipe, steps: int) -> None:
        super().__init__()
        from dro_rl.learner import Learner
        from dro_rl.reward.service import RewardService

        self.random: dict[str, Any] = {}
        model: Any = None
        for policy in recipe.algorithm.train:
            section = recipe.causal_lm(policy)
            rate = section.learning_rate
            learner = Learner(recipe, policy, section.model, steps, rate, base=model)
            self.parts[policy], model = learner, learner.model
            self.random[policy] = _random_state()
        self.model = model
        self.parts["reward"] = RewardService(recipe, recipe.generator.model, model)

    def ready(self) -> dict[str, str | float]:
        """Of the learners and the reward service, for the start-up table."""
        told = {name: part.ready() for name, part in self.parts.items()}
        trainable = {p: told[p].pop("trainable") for p in POLICIES if p in told}
        first = next(iter(trainable))
        return {
            **told[first],
            **{f"{policy}'s trainable": count for policy, count in trainable.items()},
            **told["reward"],
        }

    @contextmanager
    def _turn(self, part: str) -> Iterator[None]:
        """The part's adapter is the active one, and the only one with gradients, from before the
        forward until after the backward pass, which checkpointing makes a second forward. Learners
        draw (dropout) as each would in a process of its own, whose state they save."""
        if part != "reward":
            self.model.set_adapter(part)
            _draw_from(self.random[part])
            yield
            self.random[part] = _random_state()
            return
        learned = "generator" in self.parts
        if learned:
            self.model.set_adapter("generator")
        self.model.eval()
        with nullcontext() if learned else self.model.disable_adapter():
            yield
        self.model.train()


def _random_state() -> tuple[Any, Any]:
    import torch

    return torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_available() else None


def _draw_from(state: tuple[Any, Any]) -> None:
    import torch

    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1])


def start_shared(
    recipe: Recipe, cluster: Cluster, steps: int
) -> tuple[dict[PolicyName, Team], Team, dict[PolicyName, Team], list[tuple[str, Team]]]:
    """Begin to start both kinds of process.

    Returns:
        engines, reward service and learners as the loop takes them, and the processes by name.
    """
    base = recipe.selector.model
    engine = cluster.start(
        *("engine of both policies", SharedEngine, recipe.rollout.workers, recipe, base),
        gpus=recipe.rollout.tensor_parallel,
    )
    learner = cluster.start(
        f"learner of both policies, which scores ({in_words(recipe.reward)})",
        SharedLearner,
        1,
        recipe,
        steps,
        stateful=True,
    )
    return (
        {p: Part(engine, p) for p in POLICIES},
        Scorer(learner, "reward"),
        {p: Part(learner, p) for p in recipe.algorithm.train},
        [("learner of both policies", learner), ("engine of both policies", engine)],
    )
