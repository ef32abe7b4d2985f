"""From likelihoods and answers to the log-rewards of a group."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real

from dro_rl.errors import UserError
from dro_rl.prompts import PromptWriter
from dro_rl.records import Example, Outcome, Rollout, ScoredRollout
from dro_rl.reward import Reward

Documents = tuple[int, ...]


def document_lists(rollout: Rollout) -> list[Documents]:
    """The different document lists that a group names, in the order of their first appearance."""
    return list(dict.fromkeys(s.documents for s in rollout.selections))


def by_documents(rollout: Rollout, coefficients: Sequence[float]) -> dict[Documents, float]:
    """A group's coefficients added up over selections of the same documents."""
    total: dict[Documents, float] = {}
    for s, c in zip(rollout.selections, coefficients, strict=True):
        total[s.documents] = total.get(s.documents, 0.0) + c
    return total


def answer_tokens(writer: PromptWriter, example: Example) -> int:
    """|y|, the reference answer's tokens, its end of sequence included."""
    return len(writer.completion(example.answers[0]))


def score_group(
    reward: Reward,
    rollout: Rollout,
    likelihoods: Mapping[Documents, float] | None,
    length: int,
    answers: Sequence[str] | None = None,
) -> ScoredRollout:
    """The log-reward of every selection of a group; equal document lists are scored once.

    Args:
        likelihoods: log p_g(y|x,d) [nats] by document list, when the reward needs them.
        length: |y|, then; 0 otherwise.
        answers: the generator's answer to each selection, when the reward needs them.
    """
    given = answers or [None] * len(rollout.selections)
    outcomes = {
        s.documents: Outcome(
            rollout.example,
            s.documents,
            likelihoods[s.documents] if likelihoods else None,
            length,
            answer,
        )
        for s, answer in zip(rollout.selections, given, strict=True)
    }
    rewards = dict(zip(outcomes, checked_log_rewards(reward, [*outcomes.values()]), strict=True))
    return ScoredRollout(rollout, tuple(rewards[s.documents] for s in rollout.selections), length)


def checked_log_rewards(reward: Reward, outcomes: Sequence[Outcome]) -> list[float]:
    """What a reward returns for the outcomes of one example, as log-rewards [nats].

    Raises:
        UserError: wrong length, not a real number, not finite (but -inf, log 0, on a log scale), or
            negative on a linear scale.
    """
    name, example = type(reward).__name__, outcomes[0].example.id
    values = reward.score(outcomes)
    if not isinstance(values, list) or len(values) != len(outcomes):
        got = f"{len(values)} values" if isinstance(values, list) else type(values).__name__
        raise UserError(
            f"reward {name}, example {example}: score() must return a list of {len(outcomes)} "
            f"numbers, one an outcome, and returned {got}"
        )
    for value in values:
        if reward.scale == "log" and value == -math.inf:
            continue  # a reward of 0
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
            raise UserError(
                f"reward {name}, example {example}: score() returned {value!r}, "
                "which is not a finite number"
            )
        if reward.scale == "linear" and value < 0:
            raise UserError(
                f"reward {name}, example {example}: score() returned {value!r}; a linear reward "
                'must not be negative (use scale = "log", or shift it)'
            )
    if reward.scale == "log":
        return [float(v) for v in values]
    return [math.log(v) if v > 0 else -math.inf for v in values]
