"""Bytes that each process of a run holds at most, by what they are.

Weights, gradients and AdamW's moments are counted; activations follow from what autograd keeps of
the layers of transformers' Llama, line by line in `kept`; what libraries take before any model is a
constant, measured on a CPU. benchmarks/memory_estimate.py compares all of it with runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dro_rl.estimate.passes import Pass, largest
from dro_rl.estimate.shape import Shape
from dro_rl.recipe import PolicyName, Recipe
from dro_rl.sections.policy import PolicySection

GIB = 2**30
PARTS = ("process", "weights", "gradients", "optimiser", "activations", "logits", "holes", "cache")

# Of processes before any model [GiB]: on a CPU resident, on a GPU CUDA's context and workspaces.
LIBRARIES = {"cpu": 0.6, "gpu": 0.6}
_VLLM = {"cpu": 1.25, "gpu": 1.0}
_TRAINER = 0.7
_BFLOAT16 = {"cpu": 0.06, "gpu": 0.0}  # oneDNN's kernels, compiled for each shape of a product

# What the C library's heap loses, of a byte that comes and goes in a step, to the holes between
# blocks: 0.2 to 0.8 in benchmarks/learner_memory.py. CUDA's allocator has not been measured.
_HOLES = {"cpu": 0.5, "gpu": 0.0}

_FLOAT32 = 4
_FOUR_BITS = (4 + 8 / 64 + 32 / (64 * 256)) / 8  # with scales of 64 weights, and of 256 scales
_CHUNK = 2**24  # logits made at a time, see dro_rl.policy.forward
_COPIES_OF_LOGITS = 4  # float32: logits, log-probabilities, the gradients of both


@dataclass(frozen=True, slots=True)
class Footprint:
    """What one process holds at most [GiB], by PARTS; `policy` whose model it has; `rank`: whether
    it is one of several of a learner; `shard`: one of several of an engine, on a GPU of its own."""

    role: str
    policy: PolicyName
    parts: dict[str, float]
    rank: bool = False
    shard: bool = False

    @property
    def total(self) -> float:
        return sum(self.parts.values())


def learner(recipe: Recipe, policy: PolicyName, shape: Shape, device: str) -> Footprint:
    """Of a learner's process, at the end of a step's last forward pass."""
    section, load = recipe.causal_lm(policy), largest(recipe, policy)
    width, ranks = _width(section), section.ranks
    trained = (shape.adapters(section.lora) if section.lora else shape.parameters) / ranks
    weights = _below_adapters(section, shape) if section.lora else shape.parameters * _FLOAT32
    weights /= ranks
    if section.lora:
        weights += trained * _FLOAT32
    if ranks > 1:
        weights += shape.gathered * width
    elif width < _FLOAT32 and not section.lora:
        weights += shape.parameters * width  # autocast's copies, held until the backward pass
    if policy == "selector" and recipe.algorithm.restrained and not section.lora:
        weights += shape.parameters * width  # the frozen reference
    gradients, activations = trained * _FLOAT32, load.tokens * _activations(section, shape)
    return Footprint(
        f"{policy} learner",
        policy,
        _gib(
            process=_process(section, device),
            weights=weights,
            gradients=gradients,
            optimiser=2 * trained * _FLOAT32,
            activations=activations,
            logits=_logits(section, shape, load),
            holes=(gradients + activations) * _HOLES[device],
        ),
        rank=ranks > 1,
    )


def reward(recipe: Recipe, shape: Shape, device: str) -> Footprint:
    """Of a reward service, which holds the generator and keeps nothing for a backward pass."""
    section, load = recipe.generator, largest(recipe, "generator")
    return Footprint(
        "reward service",
        "generator",
        _gib(
            process=_process(section, device),
            weights=shape.parameters * _width(section) * _times_held(recipe, "generator", device),
            activations=load.tokens * _at_once(section, shape),
            logits=_logits(section, shape, load) / 2,  # no gradients
        ),
    )


def engine(
    recipe: Recipe, policy: PolicyName, shape: Shape, device: str, gpu_gib: float
) -> Footprint:
    """Of a policy's engine, of `rollout.tensor_parallel` on GPUs of one of its processes. On a GPU,
    vLLM takes its share of the card, whatever the model."""
    section, rollout = recipe.causal_lm(policy), recipe.rollout
    shards = rollout.tensor_parallel
    weights = shape.parameters * _width(section) * _times_held(recipe, policy, device)
    if rollout.engine == "transformers":
        parts = _gib(
            process=_process(section, device),
            weights=weights,
            activations=_prefilled(recipe, policy) * _at_once(section, shape),
            cache=_sequences(recipe, policy) * section.max_length * _key_value(section, shape),
        )
    elif device == "gpu":
        parts = _gib(process=_VLLM[device] * GIB, weights=weights / shards)
        parts["cache"] = rollout.gpu_memory_utilization * gpu_gib - sum(parts.values())
    else:
        processes = shards + (shards > 1)  # that schedules
        parts = _gib(process=processes * _VLLM[device] * GIB, weights=weights)
        parts["cache"] = shards * rollout.cpu_cache_gib
    return Footprint(f"{policy} engine", policy, parts, shard=shards > 1 and device == "gpu")


def trainer() -> Footprint:
    """Of the process of the loop, its questions not counted."""
    return Footprint("trainer", "selector", _gib(process=_TRAINER * GIB))


def one_process(parts: list[Footprint]) -> Footprint:
    """All roles in one process, which take turns: `cluster.mode: local`."""
    held = {n: sum(f.parts[n] for f in parts) for n in ("weights", "gradients", "optimiser")}
    largest_of = {n: max(f.parts[n] for f in parts) for n in PARTS if n not in held}
    busiest = max(
        parts, key=lambda f: f.parts["activations"] + f.parts["logits"] + f.parts["cache"]
    )
    for n in ("activations", "logits", "holes", "cache"):
        largest_of[n] = busiest.parts[n]
    both = {**largest_of, **held}
    return Footprint("everything", "selector", {n: both[n] for n in PARTS})


def smallest_cache(section: PolicySection, shape: Shape) -> float:
    """Keys and values of one sequence of `max_length` [GiB], without which vLLM does not start."""
    return section.max_length * _key_value(section, shape) / GIB


# --- activations ----------------------------------------------------------------------------------


def kept(section: PolicySection, shape: Shape) -> float:
    """Bytes a token that autograd keeps of one layer.

    Of each norm: its input and its normalised input in float32, the latter where the scale learns.
    Of the linear maps: their input, which autocast casts anew for each. Of attention: queries,
    keys and values (repeated for grouped queries), its output by blocks and joined. Of the gated
    MLP: gate, its activation, the other half, their product.
    """
    h, q, i = shape.hidden, shape.query, shape.intermediate
    k = q if shape.key < q else shape.key
    frozen = section.lora is not None
    norms = 2 * _FLOAT32 * h * (1 if frozen else 2)
    if section.dtype == "bfloat16":
        return norms + 2 * (5 * h + 3 * q + 2 * k + 4 * i)
    return norms + _FLOAT32 * (2 * h + 3 * q + 2 * k + 4 * i)


def _activations(section: PolicySection, shape: Shape) -> float:
    """Bytes a token of a training pass: what is kept, and one layer's gradients at a time: of the
    MLP's halves and product, of the residual and what is added to it. They count as float32 with
    bfloat16 too, where each has a copy in the other type for a while."""
    layer, between = kept(section, shape), _width(section) * shape.hidden
    passing = _FLOAT32 * (3 * shape.intermediate + 3 * shape.hidden)
    if section.gradient_checkpointing:
        return shape.layers * between + layer + passing
    return shape.layers * layer + passing


def _at_once(section: PolicySection, shape: Shape) -> float:
    """Bytes a token of a pass that keeps nothing: the MLP's halves and product, the residual."""
    return _width(section) * (3 * shape.intermediate + 3 * shape.hidden)


def _logits(section: PolicySection, shape: Shape, load: Pass) -> float:
    elements = load.predicted * shape.vocabulary
    if section.likelihood == "auto":
        elements = min(elements, _CHUNK)
    return elements * _FLOAT32 * _COPIES_OF_LOGITS


# --- weights and caches ---------------------------------------------------------------------------


def _process(section: PolicySection, device: str) -> float:
    compiled = _BFLOAT16[device] if section.dtype == "bfloat16" else 0.0
    return (LIBRARIES[device] + compiled) * GIB


def _width(section: PolicySection) -> int:
    return 2 if section.dtype == "bfloat16" else _FLOAT32


def _below_adapters(section: PolicySection, shape: Shape) -> float:
    """Bytes of the weights that LoRA leaves as they are."""
    if section.lora and section.lora.quantize:
        return shape.body * _FOUR_BITS + (shape.parameters - shape.body) * _width(section)
    return shape.parameters * _width(section)


def _times_held(recipe: Recipe, policy: PolicyName, device: str) -> int:
    """How often a process that is given new weights holds them in host memory: with LoRA also those
    below the adapters and the sum of both, else also those that came, unless it is the learner's
    own process."""
    if device == "gpu" or policy not in recipe.algorithm.train:
        return 1
    lora = recipe.causal_lm(policy).lora
    if lora and not lora.quantize:
        return 3
    return 1 if recipe.cluster.mode == "local" else 2


def _key_value(section: PolicySection, shape: Shape) -> int:
    """Bytes of a token in the cache."""
    return 2 * shape.layers * shape.key * _width(section)


def _sequences(recipe: Recipe, policy: PolicyName) -> int:
    """What the transformers engine has at once; its cache is repeated for the samples of a prompt,
    beside the one that is repeated."""
    samples = recipe.algorithm.samples if policy == "selector" else 1
    prompts = max(1, recipe.rollout.max_sequences // samples)
    return prompts * samples + (prompts if samples > 1 else 0)


def _prefilled(recipe: Recipe, policy: PolicyName) -> int:
    samples = recipe.algorithm.samples if policy == "selector" else 1
    prompts = max(1, recipe.rollout.max_sequences // samples)
    return prompts * recipe.causal_lm(policy).max_length


def _gib(**sizes: float) -> dict[str, float]:
    return {name: sizes.get(name, 0.0) / GIB for name in PARTS}


def processes(
    recipe: Recipe, shapes: dict[PolicyName, Shape], device: str, gpu_gib: float = 0
) -> Iterator[Footprint]:
    """Those that have a model, ranks aside in the order in which `roles.start_teams` asks for
    them: ranks come first there, and `gpus.groups` sets them apart."""
    if recipe.shares_base:
        yield from _on_one_base(recipe, shapes["selector"], device, gpu_gib)
        return
    shards = recipe.rollout.tensor_parallel if device == "gpu" else 1
    for _ in range(recipe.rollout.workers * shards):
        yield engine(recipe, "selector", shapes["selector"], device, gpu_gib)
    for _ in range(shards):
        yield engine(recipe, "generator", shapes["generator"], device, gpu_gib)
    for _ in range(recipe.cluster.reward_workers):
        yield reward(recipe, shapes["generator"], device)
    for policy in recipe.algorithm.train:
        for _ in range(recipe.causal_lm(policy).ranks):
            yield learner(recipe, policy, shapes[policy], device)


def _on_one_base(recipe: Recipe, shape: Shape, device: str, gpu_gib: float) -> Iterator[Footprint]:
    """The engines and the learner of `generator.share_base_with: selector`, each with the base
    once and an adapter a policy."""
    base = shape.parameters * _width(recipe.causal_lm("selector")) / GIB
    both = sum(
        shape.adapters(s.lora) for s in (recipe.causal_lm("selector"), recipe.generator) if s.lora
    )
    adapters = both * _FLOAT32 / GIB
    shards = recipe.rollout.tensor_parallel if device == "gpu" else 1
    alone = engine(recipe, "selector", shape, device, gpu_gib)
    parts = {**alone.parts, "weights": (base + adapters) / shards}
    for _ in range(recipe.rollout.workers * shards):
        yield Footprint("engine of both policies", "selector", parts, shard=alone.shard)
    learners = [learner(recipe, policy, shape, device) for policy in recipe.algorithm.train]
    together = one_process(learners)
    parts = {**together.parts, "weights": base + adapters}
    yield Footprint("learner of both policies", together.policy, parts)
