"""How much a policy's largest forward pass takes at once, for prompts as long as `max_length` lets
them be: the recipe does not say how long they are."""

from __future__ import annotations

from dataclasses import dataclass

from dro_rl.recipe import PolicyName, Recipe


@dataclass(frozen=True, slots=True)
class Pass:
    """Tokens through the model, how many of them have logits, and whether an optimiser step takes
    several such passes, so that gradients are held beside the activations."""

    tokens: int
    predicted: int
    several: bool


def largest(recipe: Recipe, policy: PolicyName) -> Pass:
    """Of a learner or, for the generator, of the reward service."""
    section, samples = recipe.causal_lm(policy), recipe.algorithm.samples
    completions = samples * section.max_new_tokens
    question = samples * section.max_length
    if policy == "selector" and section.likelihood == "auto":  # its m completions share a prompt
        question = section.max_length - section.max_new_tokens + completions
    batch = -(-recipe.training.batch_size // section.ranks) * question
    tokens = min(batch, max(recipe.training.tokens_per_microbatch, question))
    return Pass(tokens, max(1, tokens * completions // question), batch > tokens)
