"""The M-step: both policies' optimiser steps on an iteration's batches, and the metrics of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest

from dro_rl.progress import Progress
from dro_rl.recipe import PolicyName
from dro_rl.records import ScoredRollout, WeightedRollout
from dro_rl.saving import Saving
from dro_rl.step_metrics import learner_metrics, rollout_metrics, tell_bad_steps
from dro_rl.step_totals import StepMetrics
from dro_rl.teams import Teams
from dro_rl.tracking.run_directory import RunDirectory
from dro_rl.usage import LearnersUse
from dro_rl.weighing import Stage


class MStep:
    """Of one run.

    Args:
        run: where metrics go.
        teams: has the learners.
        saving: saves what the iteration has so far, between two steps, when that is due.
        steps: of an iteration.
        say: is told of steps that were skipped.
    """

    def __init__(
        self,
        run: RunDirectory,
        teams: Teams,
        saving: Saving,
        steps: int,
        say: Callable[[str], None],
    ) -> None:
        self.recipe, self.run, self.teams, self.saving = teams.recipe, run, teams, saving
        self.steps, self.say = steps, say
        self.use = LearnersUse(teams.recipe, teams.learners)

    def learn(self, at: Progress, stage: Stage) -> None:
        """Both policies take the same batches side by side; what `at` has behind it is left out."""
        left = (self._batches(len(at.weighted)) * self.recipe.training.epochs)[at.step :]
        questions = sum(len(at.weighted[part]) for part in left)
        with stage("learn", questions) as advance:
            for part in left:
                waits: dict[PolicyName, Callable[[], list[StepMetrics]]] = {
                    p: team.submit("step", at.weighted[part])
                    for p, team in self.teams.learners.items()
                }
                done: dict[PolicyName, StepMetrics] = {p: wait()[0] for p, wait in waits.items()}
                self._stepped(at, at.scored[part], at.weighted[part], done)
                if self.saving.due:
                    self.saving.save(at)
                advance(len(at.weighted[part]))

    def score_and_learn(
        self,
        at: Progress,
        weigh: Callable[[Sequence[ScoredRollout]], list[WeightedRollout]],
        stage: Stage,
    ) -> None:
        """E-step and M-step in one: each batch's rewards come from the forward pass of the
        generator's step on it, and the selector takes them while the generator goes on."""
        generator, selector = (self.teams.learners.get(p) for p in ("generator", "selector"))
        assert generator is not None
        left = [at.rollouts[part] for part in self._batches(len(at.rollouts))[at.step :]]
        begun: Callable[[], list] | None = None
        with stage("learn", sum(map(len, left))) as advance:
            for batch, following in zip_longest(left, left[1:]):
                wait = begun or generator.submit("step_and_score", batch)
                ((told, some),) = wait()
                due = self.saving.due  # what is saved are both policies after the same step
                begun = None
                if following and not due:
                    begun = generator.submit("step_and_score", following)
                done: dict[PolicyName, StepMetrics] = {"generator": told}
                weights = weigh(some)
                if selector is not None:
                    (done["selector"],) = selector.submit("step", weights)()
                at.scored += some
                at.weighted += weights
                self._stepped(at, some, weights, done)
                if due:
                    self.saving.save(at)
                advance(len(some))

    def _batches(self, questions: int) -> list[slice]:
        size = self.recipe.training.batch_size
        return [slice(i, i + size) for i in range(0, questions, size)]

    def _stepped(
        self,
        at: Progress,
        scored: Sequence[ScoredRollout],
        weighted: Sequence[WeightedRollout],
        done: Mapping[PolicyName, StepMetrics],
    ) -> None:
        """Count a step, and write its metrics."""
        at.step += 1
        self.run.append_metrics(
            {
                "iteration": at.iteration,
                "step": self.steps * (at.iteration - 1) + at.step,
                **rollout_metrics(self.recipe, scored, weighted),
                **learner_metrics(done),
            }
        )
        tell_bad_steps(self.recipe, done, self.say)
        for policy, told in done.items():
            flops = self.use.flops(policy, told.tokens, scored, weighted)
            at.timeline.add("learn", tokens=told.tokens, flops=flops)
