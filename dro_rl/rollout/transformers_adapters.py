"""Both policies on one plain engine: each an adapter (peft) on the base that they share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dro_rl.policy import causal_lm
from dro_rl.policy.adapters import add_served, load_factors
from dro_rl.recipe import POLICIES, PolicyName, Recipe
from dro_rl.rollout.engine import Sample, Tokens
from dro_rl.rollout.transformers_engine import TransformersEngine


def adapter_engines(recipe: Recipe, model_dir: str) -> dict[PolicyName, TransformersAdapter]:
    """An engine for each policy, on one copy of the base; see `TransformersEngine`."""
    model: Any = causal_lm.load_model(recipe.causal_lm("selector"), model_dir, training=False)
    for policy in POLICIES:
        model = add_served(model, recipe.causal_lm(policy), policy)
    return {p: TransformersAdapter(model_dir, recipe, p, model) for p in POLICIES}


class TransformersAdapter(TransformersEngine):
    """Samples from one policy of a model that holds both."""

    def __init__(self, model_dir: str, recipe: Recipe, policy: PolicyName, model: Any) -> None:
        self._policy = policy
        super().__init__(
            model_dir,
            section=recipe.causal_lm(policy),
            rollout=recipe.rollout,
            seed=recipe.training.seed,
            model=model,
        )

    def generate(self, *args: Any, **settings: Any) -> list[list[Sample]]:
        """See Engine.generate."""
        self._take_turn()
        return super().generate(*args, **settings)

    def score(self, prompt_ids: Tokens, completion_ids: Tokens) -> list[float]:
        """See Engine.score."""
        self._take_turn()
        return super().score(prompt_ids, completion_ids)

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """See Engine.load_weights."""
        self._take_turn()
        load_factors(self._model, weights)

    def _take_turn(self) -> None:
        self._model.set_adapter(self._policy, inference_mode=True)
