"""Word overlap of the generator's greedy answer with the reference answers.

Range: [0, 1]. Scale: linear. Source: SQuAD, Rajpurkar et al., arXiv 1606.05250 (beta 1);
F_beta = (1 + beta^2) P R / (beta^2 P + R), van Rijsbergen, Information Retrieval, 1979.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from dro_rl.evaluation.answers import normalise_answer
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
        return [self._best(o.answer or "", o.example.answers) for o in outcomes]

    def _best(self, answer: str, references: Sequence[str]) -> float:
        return max((self._f(answer, r) for r in references), default=0.0)

    def _f(self, answer: str, reference: str) -> float:
        said, wanted = normalise_answer(answer).split(), normalise_answer(reference).split()
        shared = (Counter(said) & Counter(wanted)).total()
        # with P = shared / |said| and R = shared / |wanted|
        square = self.beta**2
        return (1 + square) * shared / (square * len(wanted) + len(said)) if shared else 0.0
