"""Word overlap of the generator's greedy answer with the reference answers."""

from collections.abc import Sequence

from dro_rl.evaluation.answers import f1
from dro_rl.records import Outcome
from dro_rl.reward import Reward


class F1(Reward):
    """Token F1 of the normalised answer, the best over the reference answers, in [0, 1]."""

    needs = ("answer",)

    def score(self, outcomes: Sequence[Outcome]) -> list[float]:
        return [f1(o.answer or "", o.example.answers, o.example.metric) for o in outcomes]
