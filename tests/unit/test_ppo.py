"""PPO by hand: GAE (arXiv 1506.02438, eq. 16), the clipped surrogate (arXiv 1707.06347, eq. 7), the
value head's clipped error, and the advantages' normalisation."""

import math

import pytest
import torch

from dro_rl.algorithms import Group, weigh
from dro_rl.algorithms.losses import Tokens, selector_loss
from dro_rl.algorithms.ppo import generalised_advantages
from dro_rl.sections.algorithm import PpoAlgorithm


def section(**settings) -> PpoAlgorithm:
    return PpoAlgorithm(kind="ppo", train=["selector"], **settings)


# --- advantages -----------------------------------------------------------------------------------

# V = (0.5, 0.2, 0.8) and a reward of 1 at the end: delta = (0.2 - 0.5, 0.8 - 0.2, 1 - 0.8).
GAE = {
    0.0: ((-0.3, 0.6, 0.2), (0.2, 0.8, 1.0)),
    1.0: ((0.5, 0.8, 0.2), (1.0, 1.0, 1.0)),
    0.95: ((-0.3 + 0.95 * 0.79, 0.6 + 0.95 * 0.2, 0.2), (0.9505, 0.99, 1.0)),
}


@pytest.mark.parametrize("gae_lambda", GAE)
def test_gae_of_three_tokens(gae_lambda):
    advantages, returns = GAE[gae_lambda]
    tokens = generalised_advantages(1.0, (0.5, 0.2, 0.8), gae_lambda)
    assert tokens.advantages == pytest.approx(advantages)
    assert tokens.returns == pytest.approx(returns)
    assert tokens.values == (0.5, 0.2, 0.8)


def test_gae_of_one_token_is_the_reward_less_the_value():
    for gae_lambda in GAE:
        tokens = generalised_advantages(0.25, (0.75,), gae_lambda)
        assert tokens.advantages == pytest.approx((-0.5,))
        assert tokens.returns == pytest.approx((0.25,))


def test_the_reward_is_r_or_its_logarithm():
    group = Group("q", (math.log(0.5), math.log(0.25)), values=((0.0,), (0.0,)))
    for maximise, wanted in (("reward", (0.5, 0.25)), ("log_reward", group.log_rewards)):
        (weighed,), _ = weigh(section(maximise=maximise, normalise=False), [group])
        assert [t.advantages[0] for t in weighed.tokens] == pytest.approx(wanted)


def test_advantages_are_normalised_over_all_tokens_of_an_iteration():
    """With values of 0 and lambda = 1 each token's advantage is its selection's reward: here 1, 1
    and 3, then 5, whose mean is 2.5 and variance (1.5² + 1.5² + 0.5² + 2.5²) / 4 = 2.75."""
    groups = [
        Group("a", (math.log(1.0), math.log(3.0)), values=((0.0, 0.0), (0.0,))),
        Group("b", (math.log(5.0),), values=((0.0,),)),
    ]
    one, two = weigh(section(gae_lambda=1.0), groups)[0]
    deviation = math.sqrt(2.75 + 1e-8)
    assert one.tokens[0].advantages == pytest.approx((-1.5 / deviation,) * 2)
    assert one.tokens[1].advantages == pytest.approx((0.5 / deviation,))
    assert two.tokens[0].advantages == pytest.approx((2.5 / deviation,))
    assert one.tokens[0].returns == pytest.approx((1.0, 1.0))
    assert two.tokens[0].returns == pytest.approx((5.0,))


# --- losses ---------------------------------------------------------------------------------------


def surrogate(ratios, advantages, shares=(1.0,), mask=None, **settings):
    """The loss of rows of tokens whose probability is `ratios` times what it was, its gradient in
    their log-probabilities, and its parts."""
    logps = torch.tensor(ratios).log().requires_grad_()
    zeros = torch.zeros_like(logps).detach()
    tokens = Tokens(
        logps,
        zeros,
        torch.tensor(advantages),
        torch.tensor(shares),
        torch.ones_like(zeros) if mask is None else torch.tensor(mask),
        values=zeros,
        sampled_values=zeros,
        returns=zeros,
    )
    parts = selector_loss(section(clip=0.2, **settings), tokens)
    parts.loss.backward()
    return parts, logps.grad


# ratio, advantage, loss, gradient in the log-probability, clipped
CASES = [
    (0.5, 2.0, -1.0, -1.0, 0),  # below the clip, to be raised: unclipped
    (1.1, 2.0, -2.2, -2.2, 0),  # inside
    (1.5, 2.0, -2.4, 0.0, 1),  # above and still to be raised: -1.2 * 2, no more gradient
    (0.5, -2.0, 1.6, 0.0, 1),  # below and still to be lowered: 0.8 * 2
    (1.1, -2.0, 2.2, 2.2, 0),
    (1.5, -2.0, 3.0, 3.0, 0),  # above, to be lowered: unclipped
]


@pytest.mark.parametrize(("ratio", "advantage", "loss", "gradient", "clipped"), CASES)
def test_clipped_surrogate(ratio, advantage, loss, gradient, clipped):
    parts, slope = surrogate([[ratio]], [[advantage]])
    assert parts.loss.item() == pytest.approx(loss)
    assert slope.item() == pytest.approx(gradient)
    assert parts.clipped == clipped


def test_tokens_are_summed_and_what_is_beyond_the_end_does_not_count():
    parts, slope = surrogate(
        [[1.1, 1.5, 9.0], [0.5, 1.1, 1.1]],
        [[2.0, 2.0, 9.0], [-2.0, -2.0, 2.0]],
        shares=(0.5, 0.5),
        mask=[[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]],
    )
    assert parts.loss.item() == pytest.approx(-2.2 - 2.4 + 1.6 + 2.2 - 2.2)
    assert slope.flatten().tolist() == pytest.approx([-2.2, 0, 0, 0, 2.2, -2.2])
    assert parts.clipped == pytest.approx(0.5 * 1 / 2 + 0.5 * 1 / 3)


# value now, loss = max((V - 1)², (clip(V) - 1)²) / 2, gradient; the value at sampling was 0.5, the
# return is 1, and the clip leaves 0.3 to 0.7.
VALUES = [
    (0.6, 0.08, -0.4),  # inside: (0.6 - 1)² / 2
    (0.9, 0.045, 0.0),  # moved too far towards the return: (0.7 - 1)² / 2, no more gradient
    (0.1, 0.405, -0.9),  # moved away: the larger error counts, unclipped
    (1.6, 0.18, 0.6),  # beyond the return: (1.6 - 1)² / 2 exceeds (0.7 - 1)² / 2
]


@pytest.mark.parametrize(("value", "loss", "gradient"), VALUES)
def test_value_loss_is_clipped(value, loss, gradient):
    values = torch.tensor([[value]], requires_grad=True)
    zeros = torch.zeros(1, 1)
    tokens = Tokens(
        zeros,
        zeros,
        zeros,
        torch.tensor([1.0]),
        torch.ones(1, 1),
        values=values,
        sampled_values=torch.tensor([[0.5]]),
        returns=torch.tensor([[1.0]]),
    )
    parts = selector_loss(section(value_clip=0.2, value_weight=3.0), tokens)
    parts.loss.backward()
    assert values.grad is not None
    assert parts.value_loss == pytest.approx(loss, abs=1e-6)
    assert parts.loss.item() == pytest.approx(3 * loss, abs=1e-6)
    assert values.grad.item() == pytest.approx(3 * gradient, abs=1e-6)


def test_without_a_value_clip_the_error_counts_whole():
    """A value that moved from 0 to 3 towards a return of 10: clipped at 0.2, the worse error is the
    clipped one, which has no gradient; without a clip it is (3 - 10)^2 / 2."""
    value = torch.tensor([[3.0]], requires_grad=True)
    zero, one = torch.zeros(1, 1), torch.ones(1, 1)
    tokens = Tokens(zero, zero, zero, torch.ones(1), one, None, value, zero, 10 * one)
    for clip, loss, gradient in ((0.2, 0.5 * 9.8**2, 0.0), (None, 24.5, -7.0)):
        algorithm = section(value_weight=1.0, value_clip=clip)
        parts = selector_loss(algorithm, tokens)
        (found,) = torch.autograd.grad(parts.loss, value)
        assert parts.value_loss == pytest.approx(loss)
        assert found.item() == pytest.approx(gradient)
