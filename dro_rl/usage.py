"""What a run's processes use: model FLOPs of the learners against their devices' peak, memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dro_rl import hardware
from dro_rl.cluster.team import Team
from dro_rl.flops import ModelSize, encoder_size, model_size
from dro_rl.hardware import Memory
from dro_rl.recipe import PolicyName, Recipe
from dro_rl.records import ScoredRollout, WeightedRollout
from dro_rl.reward.scoring import by_documents
from dro_rl.sections.encoder import EncoderSelector
from dro_rl.sections.policy import AnyPolicy
from dro_rl.teams import Teams


class LearnersUse:
    """Model FLOPs of the M-step; `peak` is that of all devices that it runs on [FLOP/s], each once,
    None where one is not known."""

    def __init__(self, recipe: Recipe, learners: Mapping[PolicyName, Team]) -> None:
        self.recipe = recipe
        self.sizes = {p: _size(recipe.policy(p)) for p in learners}
        peaks = {d.key: d.peak for team in learners.values() for d in team.devices()}
        known = [peak for peak in peaks.values() if peak is not None]
        self.peak = sum(known) if len(known) == len(peaks) else None

    def flops(
        self,
        policy: PolicyName,
        tokens: int,
        scored: Sequence[ScoredRollout],
        weighted: Sequence[WeightedRollout],
    ) -> float:
        """Of one step on a batch, through which `tokens` went."""
        if policy == "selector":
            learned = [
                (len(w.rollout.prompt_ids), ids) for w in weighted for ids in self._learned(w)
            ]
            predicted = sum(len(ids) for _, ids in learned)
            whole = predicted + sum(prompt for prompt, _ in learned)
            sequences = len(learned)
        else:
            answers = [
                (s.answer_tokens, self._lists(w) * self._references(s))
                for s, w in zip(scored, weighted, strict=True)
            ]
            predicted = sum(length * times for length, times in answers)
            whole = tokens  # its prompts are known to the learner alone
            sequences = sum(times for _, times in answers)
        return self.sizes[policy].training_flops(
            tokens,
            predicted,
            whole / max(sequences, 1),
            lora=self.recipe.policy(policy).lora is not None,
        )

    def _learned(self, w: WeightedRollout) -> set[tuple[int, ...]]:
        """The different selections that the selector learns from, as tokens."""
        pairs = zip(w.rollout.selections, w.selector, strict=True)
        every = self.recipe.algorithm.restrained
        return {z.token_ids for z, coefficient in pairs if coefficient or every}

    def _lists(self, w: WeightedRollout) -> int:
        """Different lists of documents from which the generator learns to answer."""
        weights = by_documents(w.rollout, w.generator).values()
        return sum(c != 0 and c >= self.recipe.generator.prune for c in weights)

    def _references(self, scored: ScoredRollout) -> int:
        every = self.recipe.generator.answers == "any"
        return len(scored.rollout.example.answers) if every else 1


def _size(section: AnyPolicy) -> ModelSize:
    if isinstance(section, EncoderSelector):
        return encoder_size(section)
    return model_size(section.model)


def peak_memory(teams: Teams) -> dict[str, float]:
    """Peak memory by role [GiB], the largest of a role's processes; the trainer's own process,
    which in local mode has all roles, is `trainer`. Roles in one process are told of once, by
    the first."""
    own = hardware.memory()
    roles: dict[str, list[Memory]] = {"trainer": [own]}
    for policy, team in teams.engines.items():
        roles[f"{policy}_engine"] = team.memory()
    for policy, team in teams.learners.items():
        roles[f"{policy}_learner"] = team.memory()
    roles["reward"] = teams.reward.memory()
    row: dict[str, float] = {}
    seen = set[str]()
    for role, found in roles.items():
        apart = [m for m in found if m.process not in seen]
        seen.update(m.process for m in found)
        for name, values in (
            ("memory", [m.resident for m in apart]),
            ("gpu_memory", [m.gpu for m in apart if m.gpu is not None]),
        ):
            if values:
                row[f"{name}/{role}"] = max(values)
    return row
