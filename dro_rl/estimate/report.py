"""What `dro-rl check` says of a recipe's sizes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from dro_rl.estimate import encoder, footprint
from dro_rl.estimate.footprint import PARTS, Footprint
from dro_rl.estimate.gpus import verdicts
from dro_rl.estimate.passes import largest
from dro_rl.estimate.shape import Shape, shape_of
from dro_rl.recipe import POLICIES, PolicyName, Recipe
from dro_rl.sections.encoder import EncoderSelector
from dro_rl.sections.reward import in_words as reward_in_words


def in_words(recipe: Recipe) -> list[str]:
    """The derived sizes, a sentence each."""
    training, algorithm = recipe.training, recipe.algorithm
    questions = training.questions_per_iteration
    lines = [
        f"Each of {training.iterations} iterations takes "
        + ("all training questions" if questions == "all" else f"{questions} questions")
        + f", draws {algorithm.samples} selections of up to {recipe.selector.documents} of "
        f"{recipe.retrieval.candidates} documents for each, and weighs them with "
        f"{algorithm.kind} by {reward_in_words(recipe.reward)}.",
        f"The M-step passes over them {_times(training.epochs)}; an optimiser step takes "
        f"{training.batch_size} questions ({training.batch_size * algorithm.samples} selections), "
        f"equal ones computed once, as many questions in a forward pass as make up "
        f"{training.tokens_per_microbatch} tokens.",
    ]
    if questions != "all":
        steps = -(-questions // training.batch_size) * training.epochs
        lines.append(
            f"That is {steps} optimiser steps an iteration, {steps * training.iterations} in all, "
            f"and {questions * algorithm.samples * training.iterations} selections drawn."
        )
    if (every := recipe.evaluation.every) > 1:
        times = sum(map(recipe.evaluates, range(training.iterations + 1)))
        lines.append(
            f"Held-out questions are evaluated {times} times: at the start, after every {every} "
            "iterations, and at the end."
        )
    lines.append(f"It trains: {', '.join(algorithm.train)}.")
    return lines


def memory_in_words(recipe: Recipe, gpus: tuple[int, float] | None) -> list[str]:
    """The memory of each process, and whether the processes fit.

    Args:
        gpus: how many, and of how much memory each [GiB]; None: on a CPU.
    """
    if isinstance(recipe.selector, EncoderSelector) and recipe.generator.is_none:
        return _encoder_in_words(recipe, recipe.selector, "gpu" if gpus else "cpu")
    if isinstance(recipe.selector, EncoderSelector) or recipe.generator.is_none:
        return ["Memory: not estimated for an encoder with a generator, or an LLM without one."]
    shapes: dict[PolicyName, Shape] = {
        p: shape for p in POLICIES if (shape := shape_of(recipe.causal_lm(p)))
    }
    unknown: list[PolicyName] = [p for p in POLICIES if p not in shapes]
    if unknown:
        names = ", ".join(recipe.policy(p).init or recipe.policy(p).model for p in unknown)
        return [f"Memory: unknown, for nothing here says how large {names} is."]
    lines = [f"Sizes: {'; '.join(_size(p, shapes[p]) for p in POLICIES)}."]
    device = "gpu" if gpus else "cpu"
    held = list(footprint.processes(recipe, shapes, device, gpus[1] if gpus else 0))
    shown = held if gpus else [*held, footprint.trainer()]
    if recipe.cluster.mode == "local":
        shown = held = [footprint.one_process(held)]
    load = {p: largest(recipe, p).tokens for p in POLICIES}
    lines += [
        f"Memory a process at most [GiB], for prompts that fill max_length: a forward pass of the "
        f"selector's then takes {load['selector']} tokens, of the generator's "
        f"{load['generator']}.",
        *_table(shown),
    ]
    return lines + (verdicts(recipe, shapes, held, *gpus) if gpus else [])


def _encoder_in_words(recipe: Recipe, section: EncoderSelector, device: str) -> list[str]:
    shape = encoder.shape_of(section)
    if shape is None:
        return [f"Memory: unknown, for nothing here says how large {section.model} is."]
    held = list(encoder.processes(recipe, section, shape, device))
    alone = recipe.cluster.mode == "local"
    most = encoder.most_cached(section, shape, device) / footprint.GIB
    filled = f" The cache is up to {most:.2f}: as much as the data's texts fill." if most else ""
    return [
        f"Size: selector {shape.parameters / 1e6:.2f}M parameters in {shape.layers} layers of "
        f"{shape.hidden}, of which {shape.learned(section) / 1e6:.2f}M learn.",
        "Memory a process at most [GiB], for texts that fill max_length: a forward pass that "
        f"learns then takes {encoder.largest(recipe, section, shape)} tokens.{filled}",
        *_table([footprint.one_process(held)] if alone else [*held, footprint.trainer()]),
    ]


def _size(policy: PolicyName, shape: Shape) -> str:
    count = shape.parameters
    size = f"{count / 1e9:.2f}B" if count >= 1e8 else f"{count / 1e6:.2f}M"
    assumed = f" (not at hand, so of the shape of {shape.assumed})" if shape.assumed else ""
    return f"{policy} {size} parameters in {shape.layers} layers of {shape.hidden}{assumed}"


def _table(processes: Sequence[Footprint]) -> list[str]:
    """Equal processes share a row."""
    counted = Counter(f.role for f in processes)
    rows = {f.role: f for f in processes}
    head = f"  {'':<22}{'total':>8}" + "".join(f"{name:>12}" for name in PARTS)
    return [head] + [
        f"  {f'{counted[role]} x {role}':<22}{f.total:>8.2f}"
        + "".join(f"{f.parts[name]:>12.2f}" for name in PARTS)
        for role, f in rows.items()
    ]


def _times(n: int) -> str:
    return "once" if n == 1 else f"{n} times"
