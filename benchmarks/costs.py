"""What the stages of an iteration have to do, in numbers that seconds are proportional to.

A stage's seconds are a sum of its features, each times a coefficient of the machine: seconds per
FLOP, per step of decoding, per byte. `cost_model.py` fits the coefficients to what a CPU took, and
puts those of a GPU in their place.
"""

from __future__ import annotations

from dataclasses import dataclass

from dro_rl.estimate.shape import Shape

STAGES = {
    "rollout": ("prefill FLOPs", "decoding FLOPs", "decoding steps"),
    "score": ("scoring FLOPs", "questions"),
    "learn": ("training FLOPs", "optimiser bytes", "questions"),
    "synchronise": ("weight bytes", "syncs"),
}


@dataclass(frozen=True)
class Load:
    """One iteration.

    prompt, selection: tokens of the selector's prompt and of a selection. prefixes: tokens of a
    question's generator prompts and answers, what they share counted once. prefix, answer: mean
    tokens of one of them, and of the answer. lists: different document lists a question, of which
    `sequences` decode at once. batch: questions an optimiser step.
    """

    questions: int
    samples: int
    prompt: float
    selection: float
    prefixes: float
    prefix: float
    answer: float
    lists: float
    batch: int
    sequences: int


def features(load: Load, shape: Shape, width: int) -> dict[str, float]:
    """Of all stages, by name; both policies have one shape, and weights of `width` bytes.

    FLOPs are those of docs/performance.md, with causal attention over half the context.
    """
    q, m = load.questions, load.samples
    prefill = q * _forward(shape, load.prompt, 0, load.prompt / 2)
    decoded = q * m * load.selection
    decode = _forward(shape, decoded, decoded, load.prompt + load.selection / 2)
    waves = -(-q * m // load.sequences)
    chosen = load.lists * load.answer
    scoring = q * _forward(shape, load.prefixes, chosen, load.prefix / 2)
    selections = m * load.selection
    selecting = q * _forward(shape, load.prompt + selections, selections, load.prompt / 2)
    steps = -(-q // load.batch)
    return {
        "prefill FLOPs": prefill,
        "decoding FLOPs": decode,
        "decoding steps": waves * load.selection,
        "scoring FLOPs": scoring,
        "questions": q,
        "training FLOPs": 3 * (selecting + scoring),
        "optimiser bytes": steps * 2 * 16 * shape.parameters,
        "weight bytes": 2 * width * shape.parameters,
        "syncs": 1,
    }


def _forward(shape: Shape, tokens: float, predicted: float, context: float) -> float:
    """FLOPs of one forward pass."""
    head = shape.vocabulary * shape.hidden
    attention = 4 * shape.layers * shape.query * context * tokens
    return 2 * shape.body * tokens + 2 * head * predicted + attention
