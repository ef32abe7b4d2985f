"""How sure a figure is: over seeds by Student's t, between two arms by a paired bootstrap.

Sources: Student, Biometrika 6 (1908); Efron & Tibshirani, An Introduction to the Bootstrap (1993),
chapter 13 (percentile intervals); Koehn, EMNLP 2004 (pairing by test item).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dro_rl.errors import UserError

LEVEL = 0.95
RESAMPLES = 10_000
_CELLS = 2_000_000  # question draws held at once: 16 MB, however many questions there are

_ROUNDING = 1e-12  # what is left of differences that cancel

Scores = Mapping[str, float]  # a figure of every held-out question, by its id


@dataclass(frozen=True, slots=True)
class Difference:
    """The mean of paired differences and its interval, in the unit of the scores."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > _ROUNDING or self.high < -_ROUNDING


def t_half_width(values: Sequence[float]) -> float | None:
    """Half the width of the 95 % interval of the mean, t_{0.975, n-1} s / sqrt(n), in the values'
    unit. None for a single value, which has no interval.

    Raises:
        ValueError: there are no values.
    """
    from scipy import stats  # takes half a second, and most commands need no interval

    n = len(values)
    if n == 0:
        raise ValueError("no values to give an interval of")
    if n == 1:
        return None
    t = stats.t.ppf((1 + LEVEL) / 2, n - 1)
    return float(t * np.std(values, ddof=1) / math.sqrt(n))


def paired_bootstrap(
    pairs: Sequence[tuple[Scores, Scores]], resamples: int = RESAMPLES, seed: int = 0
) -> Difference:
    """The mean of `other - first` and its 95 % percentile interval.

    Each pair is (first, other) of one seed, scores of the same held-out questions. Questions are
    drawn with replacement within each seed, for seeds may have questions of their own, and every
    seed counts alike. The seeds themselves are not drawn anew: the interval is that of other
    questions under these same runs.

    Args:
        seed: of the resampling; equal input gives an equal interval.
    Raises:
        UserError: there are no pairs, or the two of a pair have different questions, or none.
    """
    if not pairs:
        raise UserError("no seed that both arms have")
    rng = np.random.default_rng(seed)
    differences = [_matched(first, other) for first, other in pairs]
    means = np.mean([_resampled_means(d, resamples, rng) for d in differences], axis=0)
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(means, [tail, 100 - tail])
    return Difference(float(np.mean([d.mean() for d in differences])), float(low), float(high))


def _matched(first: Scores, other: Scores) -> np.ndarray:
    if not first and not other:
        raise UserError("no questions to compare on")
    lone = sorted(first.keys() ^ other.keys())
    if lone:
        raise UserError(
            f"question {lone[0]!r} was asked of one arm only ({len(lone)} such): arms are compared "
            "on the same held-out questions"
        )
    return np.array([other[question] - first[question] for question in sorted(first)])


def _resampled_means(values: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Means of `resamples` draws of len(values) values with replacement."""
    rows = max(1, _CELLS // len(values))
    parts = [min(rows, resamples - done) for done in range(0, resamples, rows)]
    return np.concatenate(
        [values[rng.integers(0, len(values), (part, len(values)))].mean(axis=1) for part in parts]
    )
