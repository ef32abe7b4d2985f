"""The reward service: holds the generator and the recipe's reward, scores rollouts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real

import numpy as np
import torch

from dro_rl.errors import UserError
from dro_rl.policy import causal_lm
from dro_rl.policy.likelihood import Completion, token_log_likelihoods
from dro_rl.policy.targets import answer_target, target_log_likelihoods
from dro_rl.policy.weights import unpack
from dro_rl.recipe import Recipe
from dro_rl.records import Example, Outcome, Rollout, ScoredRollout
from dro_rl.reward import Reward, load_reward

Documents = tuple[int, ...]


class RewardService:
    """Scores each group's distinct document lists once; they count as often as they were drawn.

    Args:
        recipe: the experiment.
        model: the generator to start with.
    """

    def __init__(self, recipe: Recipe, model: str) -> None:
        torch.set_num_threads(recipe.cluster.threads)
        self.recipe = recipe
        self.reward = load_reward(recipe.reward)
        self.writer = causal_lm.prompt_writer(recipe.generator, model)
        self.model = causal_lm.load_model(recipe.generator, model, training=False)
        self.received = causal_lm.Received(recipe.generator)

    def ready(self) -> dict[str, str]:
        """The reward's name, for the start-up table."""
        return {"reward": type(self.reward).__name__}

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
        scored = []
        for start in range(0, len(rollouts), self.recipe.training.microbatch_size):
            part = rollouts[start : start + self.recipe.training.microbatch_size]
            likelihoods = self._likelihoods(part) if "likelihood" in self.reward.needs else None
            for i, rollout in enumerate(part):
                given = answers[start + i] if answers else [None] * len(rollout.selections)
                table = {
                    s.documents: Outcome(
                        rollout.example,
                        s.documents,
                        likelihoods[i][s.documents] if likelihoods else None,
                        self._answer_tokens(rollout.example) if likelihoods else 0,
                        answer,
                    )
                    for s, answer in zip(rollout.selections, given, strict=True)
                }
                rewards = dict(zip(table, self._rewards(list(table.values())), strict=True))
                scored.append(
                    ScoredRollout(
                        rollout,
                        tuple(rewards[s.documents] for s in rollout.selections),
                        self._answer_tokens(rollout.example) if likelihoods else 0,
                    )
                )
        return scored

    def log_likelihoods(self, rollouts: Sequence[Rollout]) -> list[tuple[float, ...]]:
        """log p_g(y|x,d_zi) [nats] of every selection, whatever the reward: for the bound."""
        result = []
        for start in range(0, len(rollouts), self.recipe.training.microbatch_size):
            part = rollouts[start : start + self.recipe.training.microbatch_size]
            tables = self._likelihoods(part)
            result += [
                tuple(table[s.documents] for s in rollout.selections)
                for rollout, table in zip(part, tables, strict=True)
            ]
        return result

    def load_weights(self, weights: Mapping[str, np.ndarray], version: int) -> None:
        """Take the generator's new weights; what is scored carries no version of its own.

        Raises:
            RuntimeError: names or shapes are not this model's.
        """
        causal_lm.load_weights(self.model, self.received.whole(unpack(weights)))

    def probe(self, prompt_ids: tuple[int, ...], token_ids: tuple[int, ...]) -> list[float]:
        """log p of each token of a fixed completion [nats]: must equal the learner's."""
        completion = Completion(prompt_ids, token_ids)
        with torch.no_grad(), causal_lm.autocast(self.recipe.generator, self.model):
            return token_log_likelihoods(self.model, [completion])[0].tolist()

    def _likelihoods(self, rollouts: Sequence[Rollout]) -> list[dict[Documents, float]]:
        keys = [
            (i, documents)
            for i, r in enumerate(rollouts)
            for documents in dict.fromkeys(s.documents for s in r.selections)
        ]
        targets = [
            answer_target(
                self.writer, rollouts[i].example, documents, self.recipe.generator.answers
            )
            for i, documents in keys
        ]
        with torch.no_grad(), causal_lm.autocast(self.recipe.generator, self.model):
            logps = target_log_likelihoods(self.model, targets).tolist()
        tables: list[dict[Documents, float]] = [{} for _ in rollouts]
        for (i, documents), logp in zip(keys, logps, strict=True):
            tables[i][documents] = logp
        return tables

    def _answer_tokens(self, example: Example) -> int:
        return len(self.writer.completion(example.answers[0]))

    def _rewards(self, outcomes: Sequence[Outcome]) -> list[float]:
        """Checked log-rewards [nats] of one example's outcomes."""
        return checked_log_rewards(self.reward, outcomes)


def checked_log_rewards(reward: Reward, outcomes: Sequence[Outcome]) -> list[float]:
    """What a reward returns for the outcomes of one example, as log-rewards [nats].

    Raises:
        UserError: wrong length, not a real number, not finite (but -inf, log 0, on a log scale), or
            negative on a linear scale.
    """
    name, example = type(reward).__name__, outcomes[0].example.id
    values = reward.score(outcomes)
    if not isinstance(values, list) or len(values) != len(outcomes):
        got = f"{len(values)} values" if isinstance(values, list) else type(values).__name__
        raise UserError(
            f"reward {name}, example {example}: score() must return a list of {len(outcomes)} "
            f"numbers, one an outcome, and returned {got}"
        )
    for value in values:
        if reward.scale == "log" and value == -math.inf:
            continue  # a reward of 0
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
            raise UserError(
                f"reward {name}, example {example}: score() returned {value!r}, "
                "which is not a finite number"
            )
        if reward.scale == "linear" and value < 0:
            raise UserError(
                f"reward {name}, example {example}: score() returned {value!r}; a linear reward "
                'must not be negative (use scale = "log", or shift it)'
            )
    if reward.scale == "log":
        return [float(v) for v in values]
    return [math.log(v) if v > 0 else -math.inf for v in values]
