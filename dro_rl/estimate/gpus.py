"""Which processes share which GPU, and whether they fit."""

from __future__ import annotations

import math
import subprocess
from collections import Counter
from collections.abc import Sequence

from dro_rl.errors import UserError
from dro_rl.estimate.footprint import Footprint, smallest_cache
from dro_rl.estimate.passes import largest
from dro_rl.estimate.shape import Shape
from dro_rl.recipe import PolicyName, Recipe


def found() -> tuple[int, float] | None:
    """This machine's GPUs and the memory of the smallest [GiB]; None without, and where NVIDIA's
    tool does not say."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
        sizes = [float(line) / 2**10 for line in told.stdout.split()]
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return (len(sizes), min(sizes)) if sizes else None


def given_or_found(gpus: int | None, memory: float | None) -> tuple[int, float] | None:
    """How many GPUs of how much memory [GiB] a recipe is checked for; None: for a CPU.

    Raises:
        UserError: a number of GPUs without their memory, on a machine that has none.
    """
    here = found() if memory is None else None
    if memory is None and here is None:
        if gpus is not None:
            raise UserError("--gpus: say how much memory each has, too: --gpu-memory GIB")
        return None
    number, size = here or (1, memory or 0.0)
    return gpus or number, size


def groups(processes: Sequence[Footprint], gpus: int) -> list[list[Footprint]]:
    """The processes of each GPU, as `placement.gpu_shares` divides them and Ray fills a GPU before
    it takes the next: ranks have one each, alone where there are GPUs besides, and the processes of
    an engine of several one each, alone.

    Raises:
        UserError: there are fewer GPUs than ranks, or none beside those of engines.
    """
    shards = [f for f in processes if f.shard]
    if shards and len(shards) >= gpus:
        raise UserError(
            f"rollout.tensor_parallel: the engines take {len(shards)} GPUs for themselves, and the "
            f"other processes need one or more: there are {gpus}"
        )
    if shards:
        rest = [f for f in processes if not f.shard]
        return [*([f] for f in shards), *groups(rest, gpus - len(shards))]
    ranks = [f for f in processes if f.rank]
    others = [f for f in processes if not f.rank]
    if len(ranks) > gpus:
        raise UserError(f"{len(ranks)} ranks of learners need a GPU each: there are {gpus}")
    if len(ranks) == gpus:
        chunks = _chunks(others, gpus)
        chunks += [[] for _ in range(gpus - len(chunks))]
        return [[*some, rank] for some, rank in zip(chunks, ranks, strict=True)]
    return [*_chunks(others, gpus - len(ranks)), *([f] for f in ranks)]


def _chunks(processes: Sequence[Footprint], gpus: int) -> list[list[Footprint]]:
    together = math.ceil(len(processes) / gpus)
    return [list(processes[i : i + together]) for i in range(0, len(processes), together)]


def verdicts(
    recipe: Recipe,
    shapes: dict[PolicyName, Shape],
    processes: Sequence[Footprint],
    gpus: int,
    memory: float,
) -> list[str]:
    """A line for GPUs that hold the same: what it is, and whether it fits."""
    lines = [f"On {gpus} GPU{'s' * (gpus > 1)} of {memory:.4g} GiB:"]
    placed = groups(processes, gpus)
    alike = Counter(tuple(f.role for f in group) for group in placed)
    kinds = {tuple(f.role for f in group): group for group in placed}
    for kind, group in kinds.items():
        total = sum(f.total for f in group)
        names = ", ".join(f"{f.role} {f.total:.1f}" for f in group)
        left = memory - total
        fits = f"fits, {left:.1f} left" if left >= 0 else f"DOES NOT FIT, {-left:.1f} too many"
        lines.append(f"  {alike[kind]} x {names}: {total:.1f} GiB, {fits}")
        lines += [f"    {hint}" for hint in _hints(recipe, shapes, group, fits=left >= 0)]
    if gpus > len(placed):
        lines.append(f"  {gpus - len(placed)} of them would have nothing to do")
    return lines


def _hints(
    recipe: Recipe, shapes: dict[PolicyName, Shape], group: Sequence[Footprint], *, fits: bool
) -> list[str]:
    """What to change."""
    hints = []
    for f in group:
        least = smallest_cache(recipe.causal_lm(f.policy), shapes[f.policy])
        least /= recipe.rollout.tensor_parallel if f.shard else 1
        if "engine" in f.role and f.parts["cache"] < least:
            hints.append(
                f"the share of the {f.role} leaves {f.parts['cache']:.1f} GiB for keys and values, "
                f"and one sequence of max_length needs {least:.1f}: raise "
                "rollout.gpu_memory_utilization, or rollout.tensor_parallel"
            )
    if fits:
        return hints
    big = max(group, key=lambda f: f.total)
    section = recipe.causal_lm(big.policy)
    if "engine" in big.role:
        return [*hints, "lower rollout.gpu_memory_utilization"]
    settings = []
    if big.parts["activations"] > big.total / 4:
        alone = largest(recipe, big.policy).tokens > recipe.training.tokens_per_microbatch
        settings.append(
            f"lower {big.policy}.max_length (a question alone fills a forward pass)"
            if alone
            else "lower training.tokens_per_microbatch"
        )
        if "learner" in big.role and not section.gradient_checkpointing:
            settings.append(f"set {big.policy}.gradient_checkpointing")
    if big.parts["optimiser"] > big.total / 4:
        settings.append(f"train {big.policy}.lora, or raise {big.policy}.ranks")
    return [
        *hints,
        f"the largest is the {big.role}: " + (", or ".join(settings) or "more GPUs"),
    ]
