"""The frozen records that travel between processes. A word means one thing everywhere:

a *batch* is questions; a *group* is the m selections of one question; an *iteration* is one
E-step and one M-step; a *step* is one optimiser step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Metric = Literal["squad", "hotpotqa"]


@dataclass(frozen=True, slots=True)
class Document:
    """A passage. `is_gold` marks a supporting document by its data set's own definition."""

    title: str
    text: str
    is_gold: bool = False


@dataclass(frozen=True, slots=True)
class Example:
    """One question with its reference answers and candidate documents.

    `answers` are alternatives, any of which is right. `parts` are the strings that the answer is
    made of when no single document states all of it; empty means the answer itself.
    `candidates` are in prompt order: document i is shown as identifier `[i + 1]`;
    `scores` are the retriever's, one a candidate (higher is better), empty when unknown.
    `metric` is the rule that its data set scores answers by: SQuAD's, or HotpotQA's for yes and no.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    candidates: tuple[Document, ...] = ()
    parts: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    metric: Metric = "squad"


@dataclass(frozen=True, slots=True)
class Selection:
    """What the selector sampled: z is the text, the documents are a function of it.

    `token_ids` end with the end-of-sequence token unless the length limit cut the sample short.
    `logps` [nats, one a token] are of the distribution really sampled from.
    `documents` are 0-based indices into the example's candidates, in the order named.
    """

    text: str
    token_ids: tuple[int, ...]
    logps: tuple[float, ...]
    documents: tuple[int, ...]
    malformed: bool

    @property
    def logp(self) -> float:
        """log q(z|x) [nats]: the sum over tokens."""
        return sum(self.logps)


@dataclass(frozen=True, slots=True)
class Rollout:
    """An example, the selector's prompt for it, and its group of m selections.

    `version` is the iteration whose weights sampled it (0 is the warm start).
    """

    example: Example
    prompt_ids: tuple[int, ...]
    selections: tuple[Selection, ...]
    version: int
    truncated_documents: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a reward sees of one selection.

    `log_likelihood` is log p_g(y|x,d_z) [nats], summed over the `answer_tokens` tokens of the
    reference answer (its end-of-sequence token included); `answer` is the generator's greedy
    answer. Each is None unless the reward's `needs` names it.
    """

    example: Example
    documents: tuple[int, ...]
    log_likelihood: float | None = None
    answer_tokens: int = 0
    answer: str | None = None


@dataclass(frozen=True, slots=True)
class ScoredRollout:
    """A rollout with its log-rewards log r(z_i) [nats], one a selection; -inf where r is 0.

    `answer_tokens` is |y|, the reference answer's tokens; 0 when the reward needs no likelihood.
    """

    rollout: Rollout
    log_rewards: tuple[float, ...]
    answer_tokens: int = 0


@dataclass(frozen=True, slots=True)
class TokenTargets:
    """What PPO asks of each token of a selection: its advantage, and for the value head the return
    and the value that it gave when the selection was sampled. One number a token each."""

    advantages: tuple[float, ...]
    returns: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class WeightedRollout:
    """A rollout with what the M-step does with each selection of its group.

    `selector` and `generator` are the coefficients of log p_s(z_i|x) and of log p_g(y|x,d_zi); for
    a clipped ratio the selector's is the advantage over m. `tokens` are PPO's, which has them by
    token; empty otherwise.
    """

    rollout: Rollout
    selector: tuple[float, ...]
    generator: tuple[float, ...]
    tokens: tuple[TokenTargets, ...] = ()
