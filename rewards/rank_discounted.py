"""Supporting documents found, the early ones for more: the order of a selection matters.

Range: [0, 1], 1 where the selection begins with all supporting documents; 0 where the question has
none. Scale: linear. Source: nDCG, Järvelin and Kekäläinen, ACM TOIS 20(4), 2002.
"""

import math
from collections.abc import Sequence

from dro_rl.records import Outcome
from dro_rl.reward import Reward


class RankDiscounted(Reward):
    """sum_i gold_i / log2(1 + i) over the selection's places i = 1, 2, ..., over its best value."""

    def score(self, outcomes: Sequence[Outcome]) -> list[float]:
        return [_ndcg(o) for o in outcomes]


def _ndcg(outcome: Outcome) -> float:
    candidates = outcome.example.candidates
    best = _discounted([d.is_gold for d in candidates if d.is_gold])
    found = _discounted([candidates[i].is_gold for i in outcome.documents])
    return found / best if best else 0.0


def _discounted(gains: Sequence[bool]) -> float:
    return sum(gain / math.log2(2 + place) for place, gain in enumerate(gains))
