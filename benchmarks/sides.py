"""The two sides of an iteration: the processes of a run, and the work that the authors' recipe asks
for. Make an environment fit for an engine (`benchmarks.timing.prepare`) before importing this."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.shapes import packed_flops, padded, padded_flops
from dro_rl.algorithms import Group, weigh
from dro_rl.learner import Learner
from dro_rl.policy import causal_lm
from dro_rl.policy.completion import Completion
from dro_rl.policy.targets import answer_target
from dro_rl.recipe import POLICIES, PolicyName, Recipe
from dro_rl.records import Example, Rollout, WeightedRollout
from dro_rl.reward.service import RewardService


class Ours:
    """The processes of a run, in this one."""

    def __init__(self, recipe: Recipe, worker: Any, examples: Sequence[Example]) -> None:
        self.recipe, self.worker, self.examples = recipe, worker, examples
        self.service = RewardService(recipe, recipe.generator.model)
        self.learners = {
            p: Learner(recipe, p, recipe.policy(p).model, 1000, recipe.policy(p).learning_rate)
            for p in POLICIES
        }
        self.version = 0

    def iteration(self) -> None:
        self.learn(self.worker.select(self.examples, self.recipe.algorithm.samples, 0))
        self.version += 1
        weights = {p: learner.weights() for p, learner in self.learners.items()}
        self.worker.load_weights(weights["selector"], self.version)
        self.service.load_weights(weights["generator"], self.version)

    def learn(self, rollouts: Sequence[Rollout]) -> None:
        """The generator scores as it learns (`training.weights: fresh`)."""
        size = self.recipe.training.batch_size
        for start in range(0, len(rollouts), size):
            part = rollouts[start : start + size]
            _, scored = self.learners["generator"].step_and_score(part)
            groups = [Group(s.rollout.example.id, s.log_rewards) for s in scored]
            weighed, _ = weigh(self.recipe.algorithm, groups)
            batch = [
                WeightedRollout(s.rollout, c.selector, c.generator)
                for s, c in zip(scored, weighed, strict=True)
            ]
            self.learners["selector"].step(batch)


class Peer:
    """The same iteration without sharing anything."""

    def __init__(self, recipe: Recipe, worker: Any, examples: Sequence[Example]) -> None:
        self.recipe, self.worker, self.examples = recipe, worker, examples
        self.writer = causal_lm.prompt_writer(recipe.generator, recipe.generator.model)
        self.models: dict[str, Any] = {
            p: causal_lm.load_model(recipe.policy(p), recipe.policy(p).model, training=True)
            for p in POLICIES
        }
        self.optimizers = {
            p: torch.optim.AdamW(m.parameters(), lr=recipe.policy(p).learning_rate, fused=True)
            for p, m in self.models.items()
        }

        self.full_logits = not torch.cuda.is_available()

    def iteration(self) -> None:
        self.learn(self.worker.select(self.examples, self.recipe.algorithm.samples, 0))

    def learn(self, rollouts: Sequence[Rollout]) -> None:
        groups = [(self.selections(r), self.answers(r)) for r in rollouts]
        weights = [self.score(answers) for _, answers in groups]
        size = self.recipe.training.batch_size
        for start in range(0, len(groups), size):
            part = slice(start, start + size)
            for (selections, answers), w in zip(groups[part], weights[part], strict=True):
                self.backward("selector", selections, w)
                self.backward("generator", answers, w)
            for policy, optimizer in self.optimizers.items():
                torch.nn.utils.clip_grad_norm_(self.models[policy].parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()

    def selections(self, rollout: Rollout) -> list[Completion]:
        return [Completion(rollout.prompt_ids, s.token_ids) for s in rollout.selections]

    def answers(self, rollout: Rollout) -> list[Completion]:
        return [
            answer_target(self.writer, rollout.example, s.documents, "first").completions[0]
            for s in rollout.selections
        ]

    @torch.no_grad()
    def score(self, answers: Sequence[Completion]) -> torch.Tensor:
        model = self.models["generator"]
        with causal_lm.autocast(self.recipe.generator, model):
            logps = [padded(model, [a], full_logits=self.full_logits) for a in answers]
        return torch.cat(logps).softmax(0)

    def backward(
        self, policy: PolicyName, completions: Sequence[Completion], w: torch.Tensor
    ) -> None:
        model = self.models[policy]
        with causal_lm.autocast(self.recipe.policy(policy), model):
            logps = padded(model, completions, full_logits=self.full_logits)
        (-(w * logps).sum()).backward()


def possible(peer: Peer, rollouts: Sequence[Rollout]) -> float:
    """Ratio of the floating-point operations of both sides. A backward pass takes twice a forward
    pass; theirs has one more of the generator, to score."""
    config = peer.models["generator"].config
    own = theirs = 0.0
    for rollout in rollouts:
        answers, selections = peer.answers(rollout), peer.selections(rollout)
        own += 3 * packed_flops(config, answers) + 3 * packed_flops(config, selections)
        theirs += sum(padded_flops(config, [a], full_logits=peer.full_logits) for a in answers)
        for rows in (answers, selections):
            theirs += 3 * padded_flops(config, rows, full_logits=peer.full_logits)
    return theirs / own
