"""What a policy is asked the likelihood of: a selection, or any of the reference answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dro_rl.policy.completion import AnyCompletion, AnyLikelihood, Completion
from dro_rl.prompts import PromptWriter
from dro_rl.records import Example, TokenTargets


@dataclass(frozen=True, slots=True)
class Target:
    """One term of a group's loss: -coefficient * log sum_a p(completion_a), or a clipped ratio.

    More than one completion means alternatives (several reference answers). `truncated_documents`
    were cut to fit the prompt into the context. Where a completion was sampled, `logq` is the
    log-probability [nats] of each token as sampled, `share` how often it was drawn over m, and
    `tokens` PPO's targets.
    """

    completions: tuple[AnyCompletion, ...]
    coefficient: float = 1.0
    truncated_documents: int = 0
    logq: tuple[float, ...] = ()
    share: float = 0.0
    tokens: TokenTargets | None = None


def answer_target(
    writer: PromptWriter,
    example: Example,
    documents: Sequence[int],
    answers: str,
    coefficient: float = 1.0,
) -> Target:
    """The reference answers after the generator's prompt for the selected documents.

    `answers` is the recipe's `generator.answers`: "first" or "any".
    """
    chosen = [example.candidates[i] for i in documents]
    prompt = writer.answer(example.question, chosen)
    wanted = example.answers if answers == "any" else example.answers[:1]
    completions = tuple(Completion(prompt.token_ids, writer.completion(a)) for a in wanted)
    return Target(completions, coefficient, truncated_documents=prompt.truncated_documents)


def target_log_likelihoods(likelihood: AnyLikelihood, targets: Sequence[Target]) -> Tensor:
    """log of the sum over each target's completions of p(completion | prompt) [nats], float32.

    At least one target; returns (targets,).
    """
    flat = [c for t in targets for c in t.completions]
    logps = likelihood.of(flat)
    if len(flat) == len(targets):
        return logps
    parts = logps.split([len(t.completions) for t in targets])
    return torch.stack([p.logsumexp(0) for p in parts])
