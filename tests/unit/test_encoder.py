"""A sentence encoder as selector: exact against enumeration (N = 5, K = 2), for a bi-encoder, its
head, a cross-encoder, and scores that depend on what was picked."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dro_rl.algorithms.dro import importance_weights
from dro_rl.policy.picks import Picks, State
from dro_rl.policy.targets import Target
from dro_rl.policy.texts import document_text
from tests.encoder_policies import (
    EXAMPLE,
    KINDS,
    ORDERS,
    Policy,
    distance,
    flat,
    gradient,
    make_models,
    make_policy,
)
from tests.tiny import make_example

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    return make_models(tmp_path_factory.mktemp("encoders"))


@pytest.fixture(scope="module", params=KINDS)
def policy(request, models) -> Policy:
    return make_policy(request.param, models)


# --- probabilities --------------------------------------------------------------------------------


def test_probabilities_are_plackett_lucess(policy):
    """By hand, from the scores before each pick."""
    encoder, conditional = policy.learner.model, policy.recipe.selector.conditional
    with torch.no_grad():
        first = encoder.scores([State(EXAMPLE)])[0].double()
        for (a, b), p in zip(ORDERS, policy.probabilities, strict=True):
            second = encoder.scores([State(EXAMPLE, (a,))])[0].double() if conditional else first
            rest = sum(second[j].exp() for j in range(5) if j != a)
            wanted = first[a].exp() / first.exp().sum() * second[b].exp() / rest
            assert p == pytest.approx(float(wanted), rel=1e-4)
    assert policy.probabilities.sum() == pytest.approx(1, abs=1e-5)
    assert 0.01 < policy.probabilities.max() < 0.9


def test_samples_are_distributed_as_the_probabilities_say(policy):
    (rollout,) = policy.worker.select([EXAMPLE], 20_000, 0)
    drawn = Counter(z.documents for z in rollout.selections)
    found = np.array([drawn[z] for z in ORDERS])
    expected = 20_000 * policy.probabilities
    likely = expected > 5
    chi_square = (((found - expected) ** 2) / expected)[likely].sum()
    assert chi_square < likely.sum() + 5 * math.sqrt(2 * likely.sum())
    for z in rollout.selections[:50]:
        assert math.exp(z.logp) == pytest.approx(
            policy.probabilities[ORDERS.index(z.documents)], 1e-4
        )
        assert z.token_ids == z.documents and not z.malformed and len(z.logps) == 2
    entropy = -(policy.probabilities * np.log(policy.probabilities)).sum()
    assert np.mean([-z.logp for z in rollout.selections]) == pytest.approx(entropy, abs=0.05)


def test_greedy_is_the_best_of_what_is_left(policy):
    (rollout,) = policy.worker.select([EXAMPLE], 2, 0, greedy=True)
    first, second = rollout.selections
    assert first == second
    with torch.no_grad():
        scores = policy.learner.model.scores([State(EXAMPLE)])[0]
    assert first.documents[0] == int(scores.argmax())
    if not policy.recipe.selector.conditional:
        assert first.documents == tuple(scores.topk(2).indices.tolist())


def test_the_same_seed_gives_the_same_rollouts(policy):
    examples = [make_example(i) for i in range(3)]
    rollouts = policy.worker.select(examples, 8, 7)
    assert policy.worker.select(examples, 8, 7) == rollouts
    assert policy.worker.select(examples, 8, 8) != rollouts


def test_picks_are_made_by_what_was_picked(models):
    """With the first pick's text in the question, and only then, the second pick changes."""
    encoder = make_policy("bi, conditional", models).learner.model
    with torch.no_grad():
        before, after = encoder.scores([State(EXAMPLE), State(EXAMPLE, (3,))])
        told = replace(
            EXAMPLE, question=f"{EXAMPLE.question} {document_text(EXAMPLE.candidates[3])}"
        )
        (wanted,) = encoder.scores([State(told)])
    assert torch.allclose(after, wanted, atol=1e-4)
    assert (after - before).abs().max() > 0.1


def test_another_temperature_divides_scores_and_is_told_of(models):
    policy = make_policy("bi", models, rollout={"temperature": 2.0})
    (rollout,) = policy.worker.select([EXAMPLE], 4, 0)
    (own,) = policy.worker.select([EXAMPLE], 4, 0, on_policy=True)
    with torch.no_grad():
        scores = policy.learner.model.scores([State(EXAMPLE)])[0].double()
    z = rollout.selections[0]
    assert z.logps[0] == pytest.approx(float((scores / 2).log_softmax(0)[z.documents[0]]), abs=1e-4)
    z = own.selections[0]
    assert z.logps[0] == pytest.approx(float(scores.log_softmax(0)[z.documents[0]]), abs=1e-4)


# --- gradients ------------------------------------------------------------------------------------


def test_the_policy_gradient_is_that_of_the_expected_reward(policy):
    """sum_z p(z) r(z) grad log p(z) is grad sum_z p(z) r(z), by autograd through enumeration."""
    rewards = np.random.default_rng(0).random(len(ORDERS))
    found = -gradient(policy.learner, policy.probabilities * rewards)
    encoder, conditional = policy.learner.model, policy.recipe.selector.conditional
    policy.learner.optimisation.zero_grad()
    first = encoder.scores([State(EXAMPLE)])[0]
    expected = torch.zeros(())
    for (a, b), r in zip(ORDERS, rewards, strict=True):
        second = encoder.scores([State(EXAMPLE, (a,))])[0] if conditional else first
        left = torch.cat([second[:a], second[a + 1 :]])
        place = b if b < a else b - 1
        expected = expected + first.softmax(0)[a] * left.softmax(0)[place] * r
    expected.backward()
    assert distance(found, flat(policy.learner)) < 1e-3


@pytest.mark.parametrize("kind", ["bi", "bi, conditional"])
def test_dros_expected_gradient_is_that_of_its_samples(kind, models):
    """Over all 400 ordered groups of two, against groups that the worker drew; each weight less
    1/2, which changes no expectation and takes most of the noise."""
    policy = make_policy(kind, models)
    log_rewards = np.log(np.random.default_rng(1).random(len(ORDERS)))

    def coefficients(groups, weights) -> np.ndarray:
        total = np.zeros(len(ORDERS))
        for group, weight in zip(groups, weights, strict=True):
            centred = np.array(importance_weights(log_rewards[list(group)])) - 1 / 2
            np.add.at(total, list(group), weight * centred)
        return total

    pairs = list(itertools.product(range(len(ORDERS)), repeat=2))
    p = policy.probabilities
    exact = coefficients(pairs, [p[a] * p[b] for a, b in pairs])
    (rollout,) = policy.worker.select([EXAMPLE], 12_000, 3)
    drawn = [ORDERS.index(z.documents) for z in rollout.selections]
    groups = list(zip(drawn[::2], drawn[1::2], strict=True))
    sampled = coefficients(groups, [1 / len(groups)] * len(groups))
    wanted = gradient(policy.learner, exact)
    assert distance(gradient(policy.learner, sampled), wanted) < 0.1
    assert exact.sum() == pytest.approx(0, abs=1e-4)


def test_the_gradient_does_not_depend_on_the_split(models):
    """Into passes: a budget of a question, and of all."""
    found = []
    for tokens in (1, 10_000):
        learner = make_policy("bi", models, training={"tokens_per_microbatch": tokens}).learner
        groups = [
            [
                Target((Picks(make_example(i), (0, 2)),), 0.5),
                Target((Picks(make_example(i), (1, 0)),)),
            ]
            for i in range(4)
        ]
        learner.backward(groups)
        found.append(flat(learner))
    assert distance(found[0], found[1]) < 1e-4
