"""1 where the generator's greedy answer is right, else 0.

Range: {0, 1}. Scale: linear. Source: SQuAD, Rajpurkar et al., arXiv 1606.05250.
"""

from collections.abc import Sequence

from dro_rl.evaluation.answers import exact_match
from dro_rl.records import Outcome
from dro_rl.reward import Reward


class ExactMatch(Reward):
    """Exact match of the normalised answer with any reference answer."""

    needs = ("answer",)

    def score(self, outcomes: Sequence[Outcome]) -> list[float]:
        return [exact_match(o.answer or "", o.example.answers) for o in outcomes]
