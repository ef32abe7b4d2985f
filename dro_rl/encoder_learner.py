"""The M-step of a selector that is a sentence encoder: the same steps on other likelihoods."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from dro_rl.learner import Learner
from dro_rl.objective import Objective
from dro_rl.policy.encoder_files import load_encoder
from dro_rl.policy.encoder_likelihood import EncoderLikelihood
from dro_rl.policy.picks import Picks
from dro_rl.policy.weights import pack
from dro_rl.recipe import PolicyName, Recipe
from dro_rl.records import Example, Rollout
from dro_rl.sections.encoder import EncoderSelector


class EncoderObjective(Objective):
    """Its likelihoods are those of picks."""

    def _likelihood_of(self, model: Any) -> Any:
        return EncoderLikelihood(model)

    def _frozen(self, name: str) -> Any:
        encoder = load_encoder(_settings(self.recipe), name)
        return EncoderLikelihood(encoder.requires_grad_(False))

    def selection(self, rollout: Rollout, token_ids: tuple[int, ...]) -> Picks:
        return Picks(rollout.example, token_ids, _settings(self.recipe).conditional)

    def _autocast(self) -> AbstractContextManager:
        return nullcontext()


class EncoderLearner(Learner):
    """Trains an encoder, or a part of it."""

    def _load(self, name: str, base: Any) -> Any:
        return load_encoder(_settings(self.recipe), name)

    def _objective(self, initial: str) -> Objective:
        return EncoderObjective(self.recipe, self.policy, self.model, None, initial)

    def weights(self) -> dict[str, np.ndarray]:
        """What learns: all of the encoder, or a part of it."""
        return pack(self.model.learned())

    def probe(self, example: Example) -> tuple[Picks, list[float]]:
        """A fixed selection of an example, and log p of each of its picks [nats]."""
        section = _settings(self.recipe)
        picks = Picks(example, tuple(range(section.documents)), section.conditional)
        return picks, self.objective.tokens(picks)

    def save_policy(self, folder: Path) -> None:
        """A plain model of sentence-transformers, its head among its modules."""
        self.model.save(folder)


def _settings(recipe: Recipe) -> EncoderSelector:
    assert isinstance(recipe.selector, EncoderSelector)
    return recipe.selector


def learner_class(recipe: Recipe, policy: PolicyName) -> type[Learner]:
    """What trains a policy."""
    return EncoderLearner if isinstance(recipe.policy(policy), EncoderSelector) else Learner
