"""The variance of gradients through coefficients and the Gram matrix."""

import math
from dataclasses import replace

import numpy as np
import pytest

from dro_rl.records import ScoredRollout
from dro_rl.variance import SIZES, _gram, _of_question, estimators, moments
from tests.enumeration import make_world


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("models"))


def test_moments_are_those_of_the_gradients_themselves():
    rng = np.random.default_rng(0)
    jacobian = rng.normal(size=(4, 7))
    coefficients = rng.normal(size=(50, 4))
    gradients = coefficients @ jacobian
    variance, signal = moments(coefficients, jacobian @ jacobian.T)
    covariance = np.cov(gradients.T)
    assert variance == pytest.approx(np.trace(covariance))
    assert signal == pytest.approx(np.square(gradients.mean(0)).sum() - np.trace(covariance) / 50)


def test_the_signal_of_pure_noise_is_0_in_the_mean():
    """Without the correction it would be the variance over the number of groups: 0.1 here."""
    rng = np.random.default_rng(1)
    signals = [moments(rng.normal(size=(10, 1)), np.eye(1))[1] for _ in range(4000)]
    assert abs(np.mean(signals)) < 0.01


def test_the_gram_matrix_is_that_of_the_selections_scores(world):
    chosen = [s.token_ids for s in world.rollout.selections[:3]]
    scored = ScoredRollout(world.rollout, (0.0,) * len(world.rollout.selections))
    gram = _gram(world.learner, scored, chosen)
    completions = [world.learner.objective.selection(world.rollout, ids) for ids in chosen]
    rows = []
    for i in range(3):
        world.learner.optimisation.zero_grad()
        world.learner.objective.likelihood.of(completions)[i].backward()
        grads = [p.grad.flatten() for p in world.learner.model.parameters()]
        rows.append(np.concatenate([g.double().numpy() for g in grads]))
    world.learner.optimisation.zero_grad()
    assert gram == pytest.approx(np.array(rows) @ np.array(rows).T, rel=1e-3)


def test_a_question_has_a_row_an_estimator_and_size(world):
    drawn = np.random.default_rng(2).choice(25, size=64, p=world.probabilities)
    selections = tuple(world.rollout.selections[i] for i in drawn)
    logs = tuple(float(world.log_rewards[i]) for i in drawn)
    scored = ScoredRollout(replace(world.rollout, selections=selections), logs, 1)
    rows = _of_question(world.learner, scored, 3)
    assert [(r.samples, r.estimator) for r in rows] == [
        (m, e) for m in SIZES for e in estimators(m)
    ]
    assert {r.iteration for r in rows} == {3}
    by_name = {(r.estimator, r.samples): r for r in rows}
    assert by_name["dro", 1].weight_variance == 0
    assert by_name["dro", 2].gradient_variance > by_name["dro", 16].gradient_variance > 0
    assert all(math.isfinite(r.gradient_variance) for r in rows)
