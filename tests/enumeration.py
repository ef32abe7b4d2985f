"""One question whose 25 selections (N = 5, K = 2, distinct) are all known: probability, score and
reward of each, so that expectations of an estimator are sums, and groups are cheap to simulate.

A score is grad log p_s(z|x). Shapes: Z selections, T tokens, P parameters, G groups, m draws.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dro_rl.algorithms import Coefficients, Group, weigh
from dro_rl.learner import Learner
from dro_rl.records import Rollout
from dro_rl.reward.service import RewardService
from dro_rl.sections.algorithm import Algorithm, GrpoAlgorithm
from tests.tiny import (
    all_selections,
    as_sampled,
    make_example,
    make_policies,
    make_recipe,
    make_rollout,
)


def _orders(drawn: Sequence[int]) -> float:
    """In how many orders these can be drawn."""
    equal = math.prod(math.factorial(n) for n in Counter(drawn).values())
    return math.factorial(len(drawn)) / equal


@dataclass(frozen=True)
class World:
    """`probabilities` are p_s (Z,), `log_rewards` log p_g(y|x,d_z) less the largest (Z,),
    `scores` those of each token, 0 beyond a selection's end (Z, T, P), `values` what a random value
    head gives before each token, one tuple a selection; `gram` the scores' inner products."""

    learner: Learner
    rollout: Rollout
    probabilities: np.ndarray
    log_rewards: np.ndarray
    scores: np.ndarray
    values: tuple[tuple[float, ...], ...]
    gram: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(s.token_ids) for s in self.rollout.selections])

    def group(
        self, drawn: Sequence[int], log_ratios: np.ndarray | None = None, name: str = "q"
    ) -> Group:
        """The group of these selections, as the trainer makes it."""
        return Group(
            name,
            tuple(self.log_rewards[list(drawn)].tolist()),
            None if log_ratios is None else tuple(log_ratios[list(drawn)].tolist()),
            tuple(np.log(self.probabilities[list(drawn)]).tolist()),
            values=tuple(self.values[z] for z in drawn),
        )

    def logps(self) -> torch.Tensor:
        """log p_s of every selection, with its graph: (Z,)."""
        return _token_logps(self.learner, self.rollout).sum(1)

    def gradient(self, objective: torch.Tensor) -> np.ndarray:
        """Of a function of `logps()`, by autograd: (P,)."""
        return _gradient(self.learner, objective)

    def by_token(self, algorithm: Algorithm, drawn: Sequence[int], c: Coefficients) -> np.ndarray:
        """What multiplies the score of each token of each selection, by the group's coefficients
        and the form of the algorithm's loss at the policy that sampled: (Z, T)."""
        out = np.zeros(self.scores.shape[:2])
        if c.tokens:
            for z, tokens in zip(drawn, c.tokens, strict=True):
                out[z, : self.lengths[z]] += np.array(tokens.advantages) / len(drawn)
            return out
        np.add.at(out, list(drawn), np.array(c.selector)[:, None])
        if isinstance(algorithm, GrpoAlgorithm) and algorithm.scale == "std":
            out /= self.lengths[:, None]
        return out * (np.arange(out.shape[1]) < self.lengths[:, None])

    def estimate(
        self, algorithm: Algorithm, drawn: Sequence[int], log_ratios: np.ndarray | None = None
    ) -> np.ndarray:
        """`by_token` of a group, through `weigh`."""
        (c,), _ = weigh(algorithm, [self.group(drawn, log_ratios)])
        return self.by_token(algorithm, drawn, c)

    def expectation(
        self,
        algorithm: Algorithm,
        m: int,
        probabilities: np.ndarray | None = None,
        log_ratios: np.ndarray | None = None,
    ) -> np.ndarray:
        """The expected gradient over all Z^m ordered groups, of which those with the same
        selections have the same estimate, and one of them is made: (P,)."""
        p = self.probabilities if probabilities is None else probabilities
        mean = sum(
            _orders(drawn) * p[list(drawn)].prod() * self.estimate(algorithm, drawn, log_ratios)
            for drawn in itertools.combinations_with_replacement(range(len(p)), m)
        )
        return self.expand(mean)

    def draw(self, groups: int, m: int, seed: int, p: np.ndarray | None = None) -> np.ndarray:
        """(G, m) selections."""
        p = self.probabilities if p is None else p
        return np.random.default_rng(seed).choice(len(p), (groups, m), p=p)

    def expand(self, by_token: np.ndarray) -> np.ndarray:
        """Coefficients of token scores (..., Z, T) to gradients (..., P)."""
        return np.tensordot(by_token, self.scores, 2)

    def squared_errors(self, by_token: np.ndarray) -> np.ndarray:
        """Squared distance of each group's gradient from their mean (G,), by the Gram matrix.
        Its mean estimates the trace of the covariance."""
        away = (by_token - by_token.mean(0)).reshape(len(by_token), -1)
        return ((away @ self.gram) * away).sum(1) * len(away) / (len(away) - 1)


def make_world(folder: Path) -> World:
    """On real models, through the learner that PPO trains (for its value head)."""
    make_policies(folder, scale=1.5)  # flatter than other tests': no selection is certain
    recipe = make_recipe(folder, rollout={"decoding": "distinct"}, algorithm={"kind": "ppo"})
    learner = Learner(recipe, "selector", recipe.selector.model, 10, 1e-3)
    head = learner.objective.value_head
    assert head is not None
    torch.nn.init.normal_(head.weight, std=0.1)
    rollout = as_sampled(learner, make_rollout(recipe, make_example(), all_selections()))
    (scored,) = RewardService(recipe, recipe.generator.model).score([rollout])
    probabilities = np.exp([s.logp for s in rollout.selections])
    logps = _token_logps(learner, rollout)
    scores = np.zeros((*logps.shape, sum(p.numel() for p in learner.model.parameters())))
    for z, s in enumerate(rollout.selections):
        for t in range(len(s.token_ids)):
            scores[z, t] = _gradient(learner, logps[z, t])
    (values,) = learner.values([rollout])
    rewards, flat = np.array(scored.log_rewards), scores.reshape(-1, scores.shape[-1])
    return World(
        learner,
        rollout,
        probabilities / probabilities.sum(),
        rewards - rewards.max(),
        scores,
        values,
        flat @ flat.T,
    )


def distance(found: np.ndarray, wanted: np.ndarray) -> float:
    """Relative."""
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def _token_logps(learner: Learner, rollout: Rollout) -> torch.Tensor:
    completions = [learner.objective.selection(rollout, s.token_ids) for s in rollout.selections]
    return learner.objective.likelihood.tokens(completions)


def _gradient(learner: Learner, objective: torch.Tensor) -> np.ndarray:
    found = torch.autograd.grad(
        objective, list(learner.model.parameters()), retain_graph=True, allow_unused=True
    )
    return np.concatenate(
        [
            (torch.zeros_like(p) if g is None else g).double().flatten().numpy()
            for g, p in zip(found, learner.model.parameters(), strict=True)
        ]
    )
