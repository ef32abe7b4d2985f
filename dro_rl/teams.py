"""What the loop asks of the processes of a run: samples, answers, rewards, and to hold the same
weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

from dro_rl.cluster.team import Team
from dro_rl.errors import UserError
from dro_rl.questions import shares
from dro_rl.recipe import PolicyName, Recipe
from dro_rl.records import Example, Rollout, ScoredRollout
from dro_rl.reward import Need, Scale
from dro_rl.reward.cache import Cache, New
from dro_rl.rollout.engine import Usage
from dro_rl.sections.encoder import EncoderSelector
from dro_rl.shared_base import apart
from dro_rl.tracking.console import Advance

ENGINES: dict[PolicyName, str] = {"selector": "selector engine", "generator": "generator engine"}
"""What each policy's is called."""
_KNOWN = ("known_answers", "known_scores", "known_likelihoods")
_CODE = "reward_code"
_CALL = 64
"""Questions a call, at least, of the reward service and the learners."""


@dataclass
class Teams:
    """Engines for both policies, the reward service, and a learner for each policy that learns.

    What the generator's weights make of a selection is remembered until they change.
    """

    recipe: Recipe
    engines: dict[PolicyName, Team]
    reward: Team
    learners: dict[PolicyName, Team]
    known_answers: Cache[str] = field(default_factory=Cache)
    known_scores: Cache[tuple[float, int]] = field(default_factory=Cache)
    known_likelihoods: Cache[float] = field(default_factory=Cache)
    versions: dict[PolicyName, int] = field(default_factory=dict)  # 0 where there was no sync

    @cached_property
    def needs(self) -> tuple[Need, ...]:
        """What the recipe's reward needs, as the reward service has it."""
        return self.reward.submit("needs")()[0]

    @cached_property
    def reward_scale(self) -> Scale:
        """Of the recipe's reward."""
        return self.reward.submit("scale")()[0]

    @cached_property
    def reward_code(self) -> str | None:
        """What stands for the reward's code; None where it runs elsewhere."""
        return self.reward.submit("code")()[0]

    # --- the E-step and evaluation --------------------------------------------------------------

    def select(
        self,
        examples: Sequence[Example],
        samples: int,
        seed: int,
        advance: Advance,
        *,
        greedy: bool = False,
        on_policy: bool = False,
    ) -> list[Rollout]:
        """m selections of every question, in one call of each engine.

        The same seed gives the same selections with the same number of `rollout.workers`: each
        part is drawn from a seed of its own, whichever worker draws it.
        """
        parts = shares(examples, self.recipe.rollout.workers)
        calls = [(part, samples, seed + i, greedy, on_policy) for i, part in enumerate(parts)]
        return self._current(self._map(self.engines["selector"], "select", calls, advance))

    def begin_select(
        self, examples: Sequence[Example], samples: int, seed: int
    ) -> Callable[[], list[Rollout]]:
        """The same selections, sampled in the background; the returned function waits for them."""
        parts = shares(examples, self.recipe.rollout.workers)
        calls = [(part, samples, seed + i) for i, part in enumerate(parts)]
        wait = self.engines["selector"].begin("select", calls)
        return lambda: self._current([rollout for part in wait() for rollout in part])

    def _current(self, rollouts: list[Rollout]) -> list[Rollout]:
        """The rollouts, which carry the version that the engines were given last."""
        expected = self.versions.get("selector", 0)
        for rollout in rollouts:
            if rollout.version != expected:
                raise RuntimeError(
                    f"question {rollout.example.id!r} was sampled with version {rollout.version} "
                    f"of the selector, and the engines were given version {expected}"
                )
        return rollouts

    def are_stale(self, rollouts: Sequence[Rollout]) -> bool:
        """Whether any is further behind the selector that learns than `rollout.max_staleness`."""
        newest = self.versions.get("selector", 0)
        return any(newest - r.version > self.recipe.rollout.max_staleness for r in rollouts)

    def answer(
        self,
        examples: Sequence[Example],
        selections: Sequence[tuple[int, ...]],
        advance: Advance,
    ) -> list[str]:
        """The generator's greedy answer from each example's selected documents."""
        calls = [(examples, selections)] if examples else []
        return self._map(self.engines["generator"], "answer", calls, advance)

    def score(
        self,
        rollouts: Sequence[Rollout],
        answers: Sequence[Sequence[str]] | None,
        advance: Advance,
    ) -> list[ScoredRollout]:
        """The log-reward of every selection; equal selections are scored once.

        `answers` are the generator's to each selection, where the reward needs them.
        """

        def ask(new: list[New]) -> list[list[tuple[float, int]]]:
            parts = self._parts([n.of(rollouts) for n in new])
            given = [[answers[n.rollout][i] for i in n.selections] for n in new] if answers else []
            answer_parts = self._parts(given) if answers else [None] * len(parts)
            calls = list(zip(parts, answer_parts, strict=True))
            scored = self._map(self.reward, "score", calls, advance)
            return [[(v, s.answer_tokens) for v in s.log_rewards] for s in scored]

        rows = self.known_scores.look_up(rollouts, ask, advance)
        return [
            ScoredRollout(rollout, tuple(v for v, _ in row), row[0][1])
            for rollout, row in zip(rollouts, rows, strict=True)
        ]

    def log_likelihoods(
        self, rollouts: Sequence[Rollout], advance: Advance
    ) -> list[tuple[float, ...]]:
        """log p_g(y|x,d_zi) [nats] of every selection."""

        def ask(new: list[New]) -> list[tuple[float, ...]]:
            calls = [(part,) for part in self._parts([n.of(rollouts) for n in new])]
            return self._map(self.reward, "log_likelihoods", calls, advance)

        return [tuple(row) for row in self.known_likelihoods.look_up(rollouts, ask, advance)]

    def selector_logps(self, rollouts: Sequence[Rollout], advance: Advance) -> list[list[float]]:
        """log p_s(z_i|x) [nats] of every selection under the selector learner's weights."""
        calls = [(part,) for part in self._parts(rollouts)]
        return self._map(self.learners["selector"], "score", calls, advance)

    def values(
        self, rollouts: Sequence[Rollout], advance: Advance
    ) -> list[tuple[tuple[float, ...], ...]]:
        """What PPO's value head gives before every token of every selection."""
        calls = [(part,) for part in self._parts(rollouts)]
        return self._map(self.learners["selector"], "values", calls, advance)

    def answer_all(self, rollouts: Sequence[Rollout], advance: Advance) -> list[list[str]]:
        """The generator's greedy answer to each selection of each rollout; equal ones once."""

        def ask(new: list[New]) -> list[list[str]]:
            groups = [n.of(rollouts) for n in new]
            examples = [r.example for r in groups for _ in r.selections]
            chosen = [s.documents for r in groups for s in r.selections]
            texts = iter(self.answer(examples, chosen, lambda done: None))
            advance(len(new))
            return [[next(texts) for _ in r.selections] for r in groups]

        return self.known_answers.look_up(rollouts, ask, advance)

    def statistics(self, policy: PolicyName) -> Usage:
        """What a policy's engines did since this was last asked [tokens]; nothing without any."""
        if policy not in self.engines:
            return Usage()
        return sum(self.engines[policy].submit("statistics")(), start=Usage())

    def scored_tokens(self) -> int:
        """Tokens through the reward service's models since this was last asked."""
        return sum(self.reward.submit("statistics")())

    def forget_usage(self) -> None:
        """Count anew: what was counted so far is of work that is done again."""
        for policy in self.engines:
            self.statistics(policy)
        self.scored_tokens()

    def _parts(self, items: Sequence) -> list[list]:
        """Calls for what is computed in micro-batches, with progress now and then."""
        return [list(items[i : i + _CALL]) for i in range(0, len(items), _CALL)]

    def _map(self, team: Team, method: str, calls: Sequence[tuple], advance: Advance) -> list:
        results = team.map(method, calls, lambda i: advance(len(calls[i][0])))
        return [item for part in results for item in part]

    # --- weights --------------------------------------------------------------------------------

    def synchronise(self, version: int, probe: Example) -> dict[PolicyName, float]:
        """Give the learners' weights to every process that uses them, and check that they took.

        Returns:
            the largest gap of a probe's token log-probabilities between learner and engine
            [nats], by policy.
        Raises:
            UserError: a gap exceeds `rollout.max_logp_gap`; both figures are named.
        """
        gaps: dict[PolicyName, float] = {}
        for policy, learner in self.learners.items():
            weights, users = learner.leave("weights"), self._users(policy).values()
            self.versions[policy] = version
            for team in users:  # before any can be lost while it loads them
                team.on_return("load_weights", (weights, version), anew=True)
            for wait in [team.submit("load_weights", weights, version) for team in users]:
                wait()
            if policy == "generator":
                self._forget()
            gaps[policy] = self.check(policy, probe)
        return gaps

    def restart_learners(self, tokens: int | None = None) -> None:
        """Make them afresh, as they were when the run was started; with `tokens`, they take at most
        so many at once. Others forget the weights that they were to load, which may have been lost
        with the learners."""
        for team in (*self.engines.values(), self.reward):
            team.forget()
        learners = apart(self.learners.values())
        for team in learners:
            team.restart()
        for team in learners:
            team.ready()
        if tokens:
            for wait in [team.submit("limit", tokens) for team in self.learners.values()]:
                wait()

    def _users(self, policy: PolicyName) -> dict[str, Team]:
        """Those that hold a policy's weights beside its learner."""
        users = {ENGINES[policy]: self.engines[policy]}
        return users | {"reward service": self.reward} if policy == "generator" else users

    def _forget(self) -> None:
        """What follows from the generator's old weights."""
        self.known_answers.clear()
        self.known_likelihoods.clear()
        if self.needs:
            self.known_scores.clear()

    def known(self) -> dict[str, Any]:
        """What is remembered, as plain values: found out again, it might differ in the last bit."""
        states = {name: getattr(self, name).state() for name in _KNOWN}
        return states | {_CODE: self.reward_code if states["known_scores"] else None}

    def restore_known(self, known: Mapping[str, Any]) -> None:
        """Remember what `known` gave, and nothing else; scores of a reward that has been changed
        since, or may have been, are not taken."""
        for name in _KNOWN:
            taken = name != "known_scores" or self._is_same_reward(known)
            getattr(self, name).restore(known.get(name, {}) if taken else {})

    def _is_same_reward(self, known: Mapping[str, Any]) -> bool:
        code = known.get(_CODE)
        return code is not None and code == self.reward_code

    def check(self, policy: PolicyName, probe: Example) -> float:
        """The probe's gap [nats] of the policy's users from its learner; see `synchronise`."""
        completion, wanted = self.learners[policy].submit("probe", probe)()[0]
        asked, gap = completion.asked, 0.0
        for name, team in self._users(policy).items():
            compare = partial(self._compare, policy, name, wanted)
            team.on_return("probe", asked, compare)
            gap = max(gap, *map(compare, team.submit("probe", *asked)()))
        return gap

    def _compare(
        self, policy: PolicyName, name: str, wanted: Sequence[float], got: Sequence[float]
    ) -> float:
        apart = max(abs(a - b) for a, b in zip(got, wanted, strict=True))
        if not apart <= self._bound(policy):
            raise UserError(
                f"the {name} and the {policy}'s learner disagree on the weights: summed "
                f"log-probability of a probe {sum(got):.6f} against {sum(wanted):.6f} "
                f"nats, {apart:.2g} on one token, more than {self._bound(policy):.2g} "
                "(rollout.max_logp_gap)"
            )
        return apart

    def _bound(self, policy: PolicyName) -> float:
        section = self.recipe.policy(policy)
        low = 1e-2 if isinstance(section, EncoderSelector) else 0.5  # whose engine is the same code
        return self.recipe.rollout.max_logp_gap or (1e-4 if section.dtype == "float32" else low)
