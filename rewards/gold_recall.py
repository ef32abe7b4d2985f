"""The oracle: what selecting gold documents would be worth. It shows what a selector can learn
when the reward is perfect; use it to tell a bad warm start from a bad reward."""

from collections.abc import Sequence

from dro_rl.evaluation.selection import gold_recall
from dro_rl.records import Outcome
from dro_rl.reward import Reward


class GoldRecall(Reward):
    """Share of the question's gold candidates that are selected, in [0, 1]; 0 where it has none."""

    def score(self, outcomes: Sequence[Outcome]) -> list[float]:
        return [gold_recall(o.example, o.documents) or 0.0 for o in outcomes]
