"""The likelihood of the reference answer a token, which the code of DRO's authors weights by.

Dividing by |y| is a temperature: the weights of long answers are flatter than the posterior's.

Range: (-inf, 0] nats a token. Scale: log. Source: the implementation of Shi et al., arXiv
2505.03075; the same weights as `algorithm.tau: per_token` with the sum
(not both: that divides twice).
"""

from collections.abc import Sequence

from dro_rl.records import Outcome
from dro_rl.reward import Reward


class MeanAnswerLikelihood(Reward):
    """log p_g(y | x, d_z) / |y| [nats a token]."""

    scale = "log"
    needs = ("likelihood",)

    def score(self, outcomes: Sequence[Outcome]) -> list[float]:
        return [
            o.log_likelihood / max(o.answer_tokens, 1)
            for o in outcomes
            if o.log_likelihood is not None
        ]
