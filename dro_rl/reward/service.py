"""The reward service: holds the generator and the recipe's reward, scores rollouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from dro_rl.policy import causal_lm
from dro_rl.policy.completion import AnyLikelihood, Completion
from dro_rl.policy.likelihood import Likelihood, batches
from dro_rl.policy.merging import Received, load_weights
from dro_rl.policy.targets import answer_target, target_log_likelihoods
from dro_rl.policy.weights import unpack
from dro_rl.recipe import Recipe
from dro_rl.records import Outcome, Rollout, ScoredRollout
from dro_rl.reward import Need, Reward, Scale, load_reward
from dro_rl.reward.loading import code_of
from dro_rl.reward.scoring import (
    Documents,
    answer_tokens,
    document_lists,
    outcomes_of,
    score_groups,
)
from dro_rl.sections.reward import in_words


class RewardService:
    """Scores each group's distinct document lists once; they count as often as they were drawn.

    Args:
        recipe: the experiment.
        model: the generator to start with; "none" for a reward that needs none.
        learning: its learner's model, where that lives in this process: then scores are of that,
            as it is when they are asked for.
    """

    def __init__(self, recipe: Recipe, model: str, learning: Any = None) -> None:
        torch.set_num_threads(recipe.cluster.threads)
        self.recipe = recipe
        self.tokens = 0
        if not recipe.generator.is_none:
            self._take_generator(model, learning)

    def _take_generator(self, model: str, learning: Any) -> None:
        generator = self.recipe.generator
        self.writer = causal_lm.prompt_writer(generator, model)
        self.model = learning
        self.received: Received | None = None
        if learning is None:
            self.model = causal_lm.load_model(generator, model, training=False)
            self.received = Received(generator)
        self.likelihood: AnyLikelihood = Likelihood(self.model, generator.likelihood)

    @cached_property
    def reward(self) -> Reward:
        """The recipe's, once it is needed: an evaluation asks no reward server."""
        return load_reward(self.recipe.reward)

    def ready(self) -> dict[str, str]:
        """The reward's name, for the start-up table."""
        return {"reward": in_words(self.recipe.reward)}

    def needs(self) -> tuple[Need, ...]:
        """What the reward needs."""
        return tuple(self.reward.needs)

    def scale(self) -> Scale:
        """The reward's."""
        return self.reward.scale

    def code(self) -> str | None:
        """See `code_of`."""
        return code_of(self.reward)

    def score(
        self, rollouts: Sequence[Rollout], answers: Sequence[Sequence[str]] | None = None
    ) -> list[ScoredRollout]:
        """The log-reward of every selection.

        Args:
            rollouts: groups of selections.
            answers: the generator's greedy answer to each selection, when the reward needs it.
        Raises:
            UserError: the reward returned something that is not a usable number; names the example.
        """
        return score_groups(self.reward, self.outcomes(rollouts, answers), rollouts)

    def outcomes(
        self, rollouts: Sequence[Rollout], answers: Sequence[Sequence[str]] | None = None
    ) -> list[dict[Documents, Outcome]]:
        """What the reward is given of each group, by document list; see `score`."""
        needed = "likelihood" in self.reward.needs
        tables = self._likelihoods(rollouts) if needed else [None] * len(rollouts)
        return [
            outcomes_of(
                rollout,
                table,
                answer_tokens(self.writer, rollout.example) if needed else 0,
                given,
            )
            for rollout, table, given in zip(
                rollouts, tables, answers or [None] * len(rollouts), strict=True
            )
        ]

    def log_likelihoods(self, rollouts: Sequence[Rollout]) -> list[tuple[float, ...]]:
        """log p_g(y|x,d_zi) [nats] of every selection, whatever the reward: for the bound."""
        return [
            tuple(table[s.documents] for s in rollout.selections)
            for rollout, table in zip(rollouts, self._likelihoods(rollouts), strict=True)
        ]

    def statistics(self) -> int:
        """Tokens through the model since this was last asked."""
        tokens, self.tokens = self.tokens, 0
        return tokens

    def load_weights(self, weights: Mapping[str, np.ndarray], version: int) -> None:
        """Take the generator's new weights; what is scored carries no version of its own.

        Raises:
            RuntimeError: names or shapes are not this model's.
        """
        if self.received is not None:
            load_weights(self.model, self.received.whole(unpack(weights)))

    def probe(self, prompt_ids: tuple[int, ...], token_ids: tuple[int, ...]) -> list[float]:
        """log p of each token of a fixed completion [nats]: must equal the learner's."""
        completion = Completion(prompt_ids, token_ids)
        with torch.no_grad(), causal_lm.autocast(self.recipe.generator, self.model):
            return self.likelihood.tokens([completion])[0].tolist()

    def _likelihoods(self, rollouts: Sequence[Rollout]) -> list[dict[Documents, float]]:
        """log p_g(y|x,d) [nats] of the different document lists of every rollout."""
        lists = [document_lists(r) for r in rollouts]
        kind = self.recipe.generator.answers
        groups = [
            [answer_target(self.writer, r.example, documents, kind) for documents in some]
            for r, some in zip(rollouts, lists, strict=True)
        ]
        completions = [[c for target in group for c in target.completions] for group in groups]
        budget = self.recipe.training.tokens_per_microbatch
        logps: list[float] = []
        with torch.no_grad(), causal_lm.autocast(self.recipe.generator, self.model):
            for part in batches(self.likelihood, completions, budget):
                flat = [target for group in groups[part] for target in group]
                self.tokens += self.likelihood.cost([c for t in flat for c in t.completions])
                logps += target_log_likelihoods(self.likelihood, flat).tolist()
        found = iter(logps)
        return [{documents: next(found) for documents in some} for some in lists]
