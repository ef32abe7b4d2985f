"""Word overlap of the generator's greedy answer with the reference answers.

Range: [0, 1]. Scale: linear. Source: SQuAD, Rajpurkar et al., arXiv 1606.05250 (beta 1), with the
data set's own rule for yes and no; F_beta: van Rijsbergen, Information Retrieval, 1979.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from dro_rl.evaluation.answers import f1
from dro_rl.records import Outcome
from dro_rl.reward import Reward


@dataclass
class F1(Reward):
    """F_beta of the normalised answer's words, the best over the reference answers.

    beta: how many times as much recall counts as precision.
    """

    beta: Annotated[float, Field(gt=0)] = 1.0

    needs = ("answer",)

    def score(self, outcomes: Sequence[Outcome]) -> list[float]:
        return [
            f1(o.answer or "", o.example.answers, o.example.metric, self.beta) for o in outcomes
        ]
