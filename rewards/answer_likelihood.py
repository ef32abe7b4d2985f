"""DRO's reward: the generator's likelihood of the reference answer.

Range: (-inf, 0] nats. Scale: log. Source: Shi et al., arXiv 2505.03075, eq. 8.
"""

from collections.abc import Sequence

from dro_rl.records import Outcome
from dro_rl.reward import Reward


class AnswerLikelihood(Reward):
    """log p_g(y | x, d_z), summed over answer tokens [nats]."""

    scale = "log"
    needs = ("likelihood",)

    def score(self, outcomes: Sequence[Outcome]) -> list[float]:
        return [o.log_likelihood for o in outcomes if o.log_likelihood is not None]
