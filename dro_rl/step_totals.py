"""What an optimiser step adds up: over its passes, and for the metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

from dro_rl.objective import Evaluated
from dro_rl.policy.targets import Target


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """What one optimiser step did, before it: see docs/metrics.md.

    `logp` is the mean log-likelihood of the targets and `logp_gap` the mean distance of it from
    the log-probability they were sampled with [nats]: rounding in an iteration's first step, then
    how far the policy has moved from the one that sampled. `clipped`, `kl` and `value_loss` are
    averaged over questions; 0 for algorithms without.

    A step whose loss or gradient is not finite is skipped. `bad_steps` counts those of the run so
    far, and `bad_questions` names the questions that are to blame for this one.
    """

    loss: float
    grad_norm: float
    learning_rate: float
    logp: float
    logp_gap: float
    clipped: float
    kl: float
    value_loss: float
    truncated_documents: float
    tokens: int
    bad_steps: int = 0
    bad_questions: tuple[str, ...] = ()


@dataclass(slots=True)
class Totals:
    """Sums over the loss terms of a batch; `loss`, `clipped`, `kl` and `value_loss` are means over
    its questions."""

    loss: float = 0.0
    clipped: float = 0.0
    kl: float = 0.0
    value_loss: float = 0.0
    logp: float = 0.0
    gap: float = 0.0
    truncated_documents: int = 0
    terms: int = 0
    tokens: int = 0

    @classmethod
    def of(
        cls, evaluated: Evaluated, targets: Sequence[Target], questions: int, tokens: int
    ) -> Totals:
        """Of one pass, through which `tokens` went; `questions` are the whole batch's."""
        parts, logps = evaluated.parts, evaluated.logps
        pairs = zip(logps, targets, strict=True)
        return cls(
            loss=parts.loss.item() / questions,
            clipped=parts.clipped / questions,
            kl=parts.kl / questions,
            value_loss=parts.value_loss / questions,
            logp=sum(logps),
            gap=sum(abs(p - sum(t.logq)) for p, t in pairs if t.logq),
            truncated_documents=sum(t.truncated_documents for t in targets),
            terms=len(targets),
            tokens=tokens,
        )

    def __add__(self, other: Totals) -> Totals:
        return Totals(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))
