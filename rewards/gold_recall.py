"""The oracle: what selecting supporting documents would be worth. It shows what a selector can
learn when the reward is perfect; use it to tell a bad warm start from a bad reward.

Range: [0, 1]; 0 where the question has no supporting document. Scale: linear. Source: recall.
"""

from collections.abc import Sequence

from dro_rl.evaluation.selection import gold_recall
from dro_rl.records import Outcome
from dro_rl.reward import Reward


class GoldRecall(Reward):
    """Share of the question's gold candidates that are selected."""

    def score(self, outcomes: Sequence[Outcome]) -> list[float]:
        return [gold_recall(o.example, o.documents) or 0.0 for o in outcomes]
