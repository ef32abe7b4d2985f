"""From likelihoods and answers to the log-rewards of a group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dro_rl.prompts import PromptWriter
from dro_rl.records import Example, Outcome, Rollout, ScoredRollout
from dro_rl.reward.base import Reward
from dro_rl.reward.checks import checked_log_rewards

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
    return score_groups(reward, [outcomes_of(rollout, likelihoods, length, answers)], [rollout])[0]


def score_groups(
    reward: Reward, groups: Sequence[Mapping[Documents, Outcome]], rollouts: Sequence[Rollout]
) -> list[ScoredRollout]:
    """The same for many groups in one call of the reward; `groups` are their outcomes."""
    flat = [outcome for group in groups for outcome in group.values()]
    scores = iter(checked_log_rewards(reward, flat))
    scored = []
    for rollout, group in zip(rollouts, groups, strict=True):
        rewards = {documents: next(scores) for documents in group}
        length = max(o.answer_tokens for o in group.values())
        log_rewards = tuple(rewards[s.documents] for s in rollout.selections)
        scored.append(ScoredRollout(rollout, log_rewards, length))
    return scored


def outcomes_of(
    rollout: Rollout,
    likelihoods: Mapping[Documents, float] | None,
    length: int,
    answers: Sequence[str] | None,
) -> dict[Documents, Outcome]:
    """What a reward sees of a group, by document list; see `score_group`."""
    given = answers or [None] * len(rollout.selections)
    return {
        s.documents: Outcome(
            rollout.example,
            s.documents,
            likelihoods[s.documents] if likelihoods else None,
            length,
            answer,
        )
        for s, answer in zip(rollout.selections, given, strict=True)
    }
