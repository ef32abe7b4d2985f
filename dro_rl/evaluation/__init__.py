"""One evaluation as one flat JSON object: `summarise`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dro_rl.errors import UserError
from dro_rl.evaluation.answers import exact_match, f1
from dro_rl.evaluation.selection import answer_recall, gold_recall
from dro_rl.normalise import normalise_answer
from dro_rl.records import Example

__all__ = [
    "EvaluatedExample",
    "answer_recall",
    "exact_match",
    "f1",
    "gold_recall",
    "log_mean_exp",
    "normalise_answer",
    "summarise",
]


@dataclass(frozen=True, slots=True)
class EvaluatedExample:
    """What the policies made of one held-out question.

    `documents` (0-based indices into the candidates, in order), `malformed` and `answer` are of
    the greedy selection and the greedy answer from it. `log_likelihoods` are log p_g(y|x,d_zi) and
    `selector_logps` are log p_s(z_i|x) of the m selections sampled from the selector [nats, sums
    over tokens]. Without a generator there is no answer (None) and no likelihood; `log_rewards` are
    log r(z_i) of the same selections then [nats, -inf where r is 0], and `reward_scale` is the
    reward's.
    """

    example: Example
    documents: tuple[int, ...]
    malformed: bool
    answer: str | None
    log_likelihoods: tuple[float, ...]
    selector_logps: tuple[float, ...]
    log_rewards: tuple[float, ...] = ()
    reward_scale: Literal["linear", "log"] = "linear"

    @property
    def em(self) -> float | None:
        return None if self.answer is None else exact_match(self.answer, self.example.answers)

    @property
    def f1(self) -> float | None:
        if self.answer is None:
            return None
        return f1(self.answer, self.example.answers, self.example.metric)

    @property
    def bound(self) -> float | None:
        """[nats]"""
        return log_mean_exp(self.log_likelihoods) if self.log_likelihoods else None

    @property
    def reward(self) -> float | None:
        """Of the sampled selections: of a linear reward the mean of r, of a log-reward log of it
        [nats], None where all of them have r = 0."""
        if not self.log_rewards:
            return None
        if self.reward_scale == "linear":
            return _mean(map(math.exp, self.log_rewards))
        return log_mean_exp(self.log_rewards) if max(self.log_rewards) > -math.inf else None


def summarise(
    evaluated: Sequence[EvaluatedExample], *, iteration: int, seconds: float
) -> dict[str, float | None]:
    """Means over questions, under the keys of evaluation/iteration-NNNN.json.

    Rates (in [0, 1]), of the greedy selection and answer: `em`, `f1`; `recall@1`, `recall@3`,
    `recall@5` (the answer is in the first k selected documents); `gold_recall` (over the questions
    that have gold candidates; None if none has); `malformed` (share of selections).

    Of the m sampled selections: `bound` is log (1/m) sum_i p_g(y|x,d_zi), the importance-weighted
    lower bound on log p(y|x) (IWAE, arXiv 1509.00519) [nats], and `bound_se` the standard error of
    its mean over questions (None for a single question, which has none);
    `effective_sample_size` is 1 / sum_i w_i^2 with w = softmax of the log-likelihoods, from 1 to
    m; `selector_entropy` is the Monte Carlo estimate of the entropy of p_s(z|x), the mean of
    -log p_s(z_i|x) [nats].

    Without a generator `em`, `f1`, `bound`, `bound_se` and `effective_sample_size` are None, and
    there is `reward`: of a linear reward the mean of r over the sampled selections, of a log-reward
    log (1/m) sum_i r(z_i) [nats] (over the questions with a selection of r > 0), which is the bound
    where r is a likelihood.

    Raises:
        UserError: there are no questions, or a question's log-likelihoods are missing or not
            finite, named by its id.
    """
    if not evaluated:
        raise UserError("no questions to evaluate on: raise data.evaluation_questions")
    for one in evaluated:
        _check(one)
    recalls = {
        f"recall@{k}": _mean(answer_recall(one.example, one.documents, k) for one in evaluated)
        for k in (1, 3, 5)
    }
    bounds = _known(one.bound for one in evaluated)
    return {
        "iteration": iteration,
        "questions": len(evaluated),
        "em": _mean_known(one.em for one in evaluated),
        "f1": _mean_known(one.f1 for one in evaluated),
        **recalls,
        "gold_recall": _mean_known(gold_recall(one.example, one.documents) for one in evaluated),
        "bound": _mean_known(bounds),
        "bound_se": _standard_error(bounds),
        **(
            {"reward": _mean_known(one.reward for one in evaluated)}
            if any(one.log_rewards for one in evaluated)
            else {}
        ),
        "effective_sample_size": _mean_known(
            _effective(one.log_likelihoods) if one.log_likelihoods else None for one in evaluated
        ),
        "malformed": _mean(one.malformed for one in evaluated),
        "selector_entropy": _mean(-_mean(one.selector_logps) for one in evaluated),
        "seconds": seconds,
    }


def _check(one: EvaluatedExample) -> None:
    asked = [("log-probabilities of selections", one.selector_logps, "selector")]
    if one.answer is not None:
        asked.insert(0, ("log-likelihoods of the answer", one.log_likelihoods, "generator"))
    for name, values, policy in asked:
        if not values or not np.isfinite(values).all():
            raise UserError(
                f"example {one.example.id!r}: the {name} must be one finite number or more, not "
                f"{list(values)}: if they are not finite, the {policy} has diverged; lower "
                f"{policy}.learning_rate"
            )


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _mean_known(values: Iterable[float | None]) -> float | None:
    known = _known(values)
    return _mean(known) if known else None


def _standard_error(values: Sequence[float]) -> float | None:
    if len(values) < 2:
        return None
    return float(np.std(values, ddof=1) / np.sqrt(len(values)))


def log_mean_exp(log_likelihoods: Sequence[float]) -> float:
    """One question's bound, log (1/m) sum_i p_g(y|x,d_zi) [nats].

    Shifted by the largest, since exp underflows at -745 nats.
    """
    largest = max(log_likelihoods)
    return largest + float(np.log(np.mean(np.exp(np.asarray(log_likelihoods) - largest))))


def _effective(log_weights: Sequence[float]) -> float:
    weights = np.exp(np.asarray(log_weights) - max(log_weights))
    return float(weights.sum() ** 2 / (weights**2).sum())
