"""What a selection and its answer cost by their length. Meant as a term of a sum: alone it teaches
to select nothing.

    reward:
      - rewards/answer_likelihood.py
      - {use: rewards/length_penalty.py, document: 0.5}

The prior exp(-cost) over selections, times the likelihood. In a sum of linear rewards write
`scale: linear`, which takes exp(-cost) in (0, 1] itself.

Range: (-inf, 0] nats. Scale: log. Source: our own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from dro_rl.records import Outcome
from dro_rl.reward import Reward

Cost = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass
class LengthPenalty(Reward):
    """-(document x documents selected + word x words answered) [nats].

    document, word: the cost of one [nats]. Answers are asked for where words cost something.
    """

    document: Cost = 0.1
    word: Cost = 0.0

    scale = "log"

    def __post_init__(self) -> None:
        self.needs = ("answer",) if self.word else ()

    def score(self, outcomes: Sequence[Outcome]) -> list[float]:
        return [
            -self.document * len(o.documents) - self.word * len((o.answer or "").split())
            for o in outcomes
        ]
