"""The rollout worker of a selector that is a sentence encoder: scores, and draws by them.

All m selections of a question come from the same scores, so more of them cost next to nothing. This
module imports no torch before the worker has set its process's environment variables.
"""

from __future__ import annotations

import os
import time
from collections.abc import Hashable, Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

from dro_rl.hardware import memory
from dro_rl.prompts import write_selection
from dro_rl.recipe import PolicyName, Recipe
from dro_rl.records import Example, Rollout, Selection
from dro_rl.rollout.engine import Usage
from dro_rl.rollout.environment import engine_environment
from dro_rl.rollout.worker import RolloutWorker
from dro_rl.sections.encoder import EncoderSelector

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from dro_rl.policy.picks import Documents, Picks, State

_TOGETHER = 32  # questions scored at once


class EncoderWorker:
    """Samples selections from an encoder.

    Args:
        recipe: the experiment.
        policy: the selector.
        model_dir: the weights to start from, version 0: a folder or a hub name.
    """

    def __init__(self, recipe: Recipe, policy: PolicyName, model_dir: str) -> None:
        started = time.perf_counter()
        os.environ.update(engine_environment(recipe.rollout, recipe.cluster.threads))
        import torch

        from dro_rl.policy.encoder_files import load_encoder

        torch.set_num_threads(recipe.cluster.threads)
        assert isinstance(recipe.selector, EncoderSelector)
        self._recipe, self._section = recipe, recipe.selector
        self._encoder = load_encoder(self._section, model_dir)
        self._rows: dict[State, Tensor] = {}  # scores by the weights that it has
        self._texts: dict[Hashable, Tensor] = {}  # and what they make of texts, within a call
        self._tokens, self._version = 0, 0
        self._start_seconds = time.perf_counter() - started

    def ready(self) -> dict[str, str | float]:
        """For the start-up table; `peak_memory` is this process's, resident [MiB]."""
        return {
            "engine": f"sentence-transformers, {self._encoder.what}",
            "version": version("sentence-transformers"),
            "start_seconds": self._start_seconds,
            "peak_memory": 1024 * memory().resident,
        }

    def select(
        self,
        examples: Sequence[Example],
        samples: int,
        seed: int,
        greedy: bool = False,
        on_policy: bool = False,
    ) -> list[Rollout]:
        """A group of `samples` selections of each example: K documents each.

        Sampled at the recipe's temperature, or, `on_policy`, from the selector itself (1); the
        same call with the same weights gives the same rollouts.
        """
        import torch

        # What earlier calls knew would decide which texts share a pass, which shows in a last bit.
        self._texts.clear()
        dice = torch.Generator().manual_seed(seed)
        own = greedy or on_policy
        temperature = 1.0 if own else self._recipe.rollout.temperature
        rollouts = []
        for start in range(0, len(examples), _TOGETHER):
            some = examples[start : start + _TOGETHER]
            drawn = self._draw(some, samples, None if greedy else dice, temperature)
            for example, chosen in zip(some, drawn, strict=True):
                group = self._selections(example, chosen, temperature)
                cut = self._encoder.cut(example)
                rollouts.append(Rollout(example, (), group, self._version, cut))
        return rollouts

    def _draw(
        self,
        examples: Sequence[Example],
        samples: int,
        dice: torch.Generator | None,
        temperature: float,
    ) -> list[list[Documents]]:
        """The documents of each selection of each example; greedy without dice."""
        from dro_rl.policy.picks import State

        if not self._section.conditional:
            rows = self._scored([State(example) for example in examples])
            k = self._section.documents
            return [_drawn(row / temperature, k, samples, dice) for row in rows]
        groups: list[list[Documents]] = [[()] * samples for _ in examples]
        for _ in range(self._section.documents):
            pairs = list(zip(examples, groups, strict=True))
            self._scored([State(e, picked) for e, group in pairs for picked in set(group)])
            groups = [self._one_more(e, group, dice, temperature) for e, group in pairs]
        return groups

    def _one_more(
        self,
        example: Example,
        group: Sequence[Documents],
        dice: torch.Generator | None,
        temperature: float,
    ) -> list[Documents]:
        """A document more for each of a group; noise is new at each pick, as its scores are."""
        from dro_rl.policy.picks import State

        places: dict[Documents, list[int]] = {}
        for i, picked in enumerate(group):
            places.setdefault(picked, []).append(i)
        found = list(group)
        for picked, same in places.items():
            row = self._rows[State(example, picked)] / temperature
            row[list(picked)] = -float("inf")
            for i, document in zip(same, _drawn(row, 1, len(same), dice), strict=True):
                found[i] = (*picked, *document)
        return found

    def _selections(
        self, example: Example, drawn: Sequence[Documents], temperature: float
    ) -> tuple[Selection, ...]:
        """With the log-probability of each pick; equal ones are one object."""
        from dro_rl.policy.picks import Picks

        different = list(dict.fromkeys(drawn))
        picks = [Picks(example, documents, self._section.conditional) for documents in different]
        made = {
            d: Selection(write_selection(d), d, tuple(row), d, False)
            for d, row in zip(different, self._logps(picks, temperature), strict=True)
        }
        return tuple(made[documents] for documents in drawn)

    def _logps(self, picks: Sequence[Picks], temperature: float) -> list[list[float]]:
        """log p of each pick [nats]; all of one example."""
        import torch

        from dro_rl.policy.picks import pick_logps

        states = list(dict.fromkeys(state for p in picks for state in p.states))
        rows = torch.stack(self._scored(states))
        return pick_logps(rows / temperature, states, picks).tolist()

    def _scored(self, states: Sequence[State]) -> list[Tensor]:
        """The scores of each state, float64 on the CPU; what is known is not computed again."""
        import torch

        from dro_rl.policy.texts import drop_oldest

        drop_oldest(self._rows)  # a pipeline's never get other weights
        new = [state for state in dict.fromkeys(states) if state not in self._rows]
        for start in range(0, len(new), _TOGETHER):
            some = new[start : start + _TOGETHER]
            self._tokens += self._encoder.cost(some, self._texts)
            with torch.no_grad():
                found = self._encoder.scores(some, self._texts).double().cpu()
            for state, row in zip(some, found, strict=True):
                self._rows[state] = row[: len(state.example.candidates)].clone()
        return [self._rows[state] for state in states]

    def load_weights(self, weights: Mapping[str, np.ndarray], version: int) -> None:
        """Take over what `EncoderLearner.weights` gave."""
        from dro_rl.policy.weights import unpack

        self._encoder.load_learned(unpack(weights))
        self._rows.clear()
        self._texts.clear()
        self._version = version

    def probe(self, example: Example, documents: Documents) -> list[float]:
        """log p of each pick of a fixed selection [nats], to compare with the learner's."""
        from dro_rl.policy.picks import Picks

        return self._logps([Picks(example, documents, self._section.conditional)], 1.0)[0]

    def statistics(self) -> Usage:
        """What went through the encoder since this was last asked."""
        tokens, self._tokens = self._tokens, 0
        return Usage(prompt_tokens=tokens)


def _drawn(row: Tensor, k: int, samples: int, dice: torch.Generator | None) -> list[Documents]:
    from dro_rl.policy.picks import gumbel, top_k

    if dice is None:
        return top_k(row[None], k) * samples
    return top_k(row + gumbel(samples, len(row), dice), k)


def worker_class(recipe: Recipe, policy: PolicyName) -> type[RolloutWorker] | type[EncoderWorker]:
    """What samples from a policy."""
    encodes = isinstance(recipe.policy(policy), EncoderSelector)
    return EncoderWorker if encodes else RolloutWorker
