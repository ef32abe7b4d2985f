"""Rollouts, rewards and policies for both sides of `ppo_parity.py`, and what each side returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.trl_problem import LEVELS, Weights, moved, weights_of
from dro_rl.learner import Learner
from dro_rl.policy.completion import Completion
from dro_rl.recipe import Recipe
from dro_rl.records import Rollout, Selection
from tests.tiny import make_example, make_recipe

QUESTIONS, SAMPLES, TOKENS = 6, 8, 6
SETTINGS = {"gae_lambda": 0.9, "clip": 0.2, "value_weight": 0.3, "value_clip": 0.2}


@dataclass(frozen=True)
class Problem:
    """Rollouts with rewards, and the weights and value heads that sampled and that learn."""

    recipe: Recipe
    rollouts: list[Rollout]
    rewards: list[tuple[float, ...]]
    sampled: tuple[Weights, Weights]
    current: tuple[Weights, Weights]


@dataclass(frozen=True)
class Side:
    """What one implementation computed. `advantages` are before normalisation, by row and token."""

    advantages: Tensor
    normalised: Tensor
    policy_loss: float
    value_loss: float
    clipped: float
    gradient: Weights


def make_problem(folder: Path) -> Problem:
    """Completions of one length, which is where both sides mean the same by PPO."""
    recipe = make_recipe(
        folder, algorithm={"kind": "ppo", "samples": SAMPLES, "train": ["selector"], **SETTINGS}
    )
    learner = Learner(recipe, "selector", recipe.selector.model, 1, 1e-3)
    start, width = weights_of(learner.model), learner.objective.value_head.in_features  # type: ignore[union-attr]
    draw = torch.Generator().manual_seed(0)
    head = {
        "weight": 0.3 * torch.randn(1, width, generator=draw),
        "bias": torch.full((1,), 0.2),
    }
    sampled = (moved(start, 0.05, 1), head)
    current = (
        moved(sampled[0], 0.02, 2),
        {
            "weight": head["weight"] + 0.03 * torch.randn(1, width, generator=draw),
            "bias": head["bias"],
        },
    )
    learner.model.load_state_dict(sampled[0])
    pad, vocabulary = learner.writer.tokenizer.pad_token_id, learner.model.config.vocab_size
    rollouts, rewards = [], []
    for number in range(QUESTIONS):
        example = make_example(number, documents=5 - number % 2)
        prompt = learner.writer.select(example.question, example.candidates, 2).token_ids
        assert pad == 0 and pad not in prompt  # TRL takes it for no token at all
        rows = torch.randint(1, vocabulary, (SAMPLES, TOKENS), generator=draw).tolist()
        with torch.no_grad():
            completions = [Completion(prompt, tuple(ids)) for ids in rows]
            logps = learner.objective.likelihood.tokens(completions).tolist()
        selections = [
            Selection("", tuple(ids), tuple(p), (), True)
            for ids, p in zip(rows, logps, strict=True)
        ]
        rollouts.append(Rollout(example, prompt, tuple(selections), 0))
        levels = torch.randint(len(LEVELS), (SAMPLES,), generator=draw).tolist()
        rewards.append(tuple(LEVELS[i] for i in levels))
    return Problem(recipe, rollouts, rewards, sampled, current)
