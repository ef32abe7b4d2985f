"""The EM loop of DRO (Algorithm 1 of arXiv 2505.03075), on whatever cluster it is given."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import zip_longest
from typing import Any

from dro_rl import checkpoint
from dro_rl.at_work import alone
from dro_rl.cluster.processes import open_cluster
from dro_rl.data import Split
from dro_rl.ending import says_how_to_go_on
from dro_rl.errors import UserError
from dro_rl.evaluator import evaluate
from dro_rl.learner import StepMetrics
from dro_rl.progress import Progress
from dro_rl.questions import questions_of, seed_of
from dro_rl.recipe import PolicyName, Recipe
from dro_rl.records import Example, Rollout, ScoredRollout, WeightedRollout
from dro_rl.recovery import keep_going
from dro_rl.reward import Reward
from dro_rl.roles import process_count, rank_count, start_teams, taken_gpus
from dro_rl.saving import Saving
from dro_rl.start import prepare, scores_while_learning, steps_per_iteration
from dro_rl.step_metrics import (
    iteration_metrics,
    learner_metrics,
    rollout_metrics,
    tell_bad_steps,
)
from dro_rl.teams import Teams
from dro_rl.timeline import sampled_tokens
from dro_rl.tracking.console import Console
from dro_rl.tracking.report import LiveReport
from dro_rl.tracking.run_directory import RunDirectory
from dro_rl.tracking.trackers import following
from dro_rl.usage import LearnersUse, peak_memory
from dro_rl.weighing import weigh_rollouts


@alone
def train(recipe: Recipe, console: Console, resume: RunDirectory | None = None) -> RunDirectory:
    """Run a recipe to its end, or a run on from its last checkpoint.

    Raises:
        UserError: bad input; nothing has been written when it is found before the start.
    """
    start = prepare(recipe, console, resume)
    questions, here = start.questions, RunDirectory.of(recipe)
    processes, stacks = process_count(recipe, learners=True), here.path / "stacks"
    ranks, taken = rank_count(recipe), taken_gpus(recipe, learners=True)
    with (
        open_cluster(recipe.cluster, processes, console.say, stacks, ranks, taken) as cluster,
        says_how_to_go_on(lambda: checkpoint.how_to_go_on(here)),  # Ray has taken the signals
    ):
        steps = recipe.training.iterations * steps_per_iteration(recipe, len(questions.train))
        teams = start_teams(recipe, cluster, start.models, console, steps)
        run = resume or RunDirectory.create(recipe)
        trainer = Trainer(recipe, run, questions, teams, start.reward, console)

        def attempt(done: int) -> None:
            trainer.restore(done)
            run.write_recipe(recipe)  # of a resumed run: what it has been continued with
            with following(recipe, run, console.say):
                trainer.run_on()

        keep_going(attempt, start.done, teams, run, console)
    return run


class Trainer:
    """One run's loop; every method is one line of the algorithm."""

    def __init__(
        self,
        recipe: Recipe,
        run: RunDirectory,
        questions: Split,
        teams: Teams,
        reward: Reward,
        console: Console,
    ) -> None:
        self.recipe, self.run, self.questions = recipe, run, questions
        self.teams, self.reward, self.console = teams, reward, console
        self.report = LiveReport(run)
        self.at = Progress(1)
        self.use = LearnersUse(recipe, teams.learners)
        self.saving = Saving(recipe, run, teams, console)
        self.hits = math.nan  # share of prompt tokens that sampling read from prefix caches

    def restore(self, done: int) -> None:
        """Put the run and all its processes into the state that was saved last after iteration
        `done`, in the middle of the next one where that has been saved.

        Needs nothing of them but that they are there: engines may hold any weights and the caches
        anything. Learners may be fresh; before the first checkpoint (0) they have to be.
        """
        examples, *_ = self._to_sample(done + 1)
        steps, probe = self._steps_before(done + 1), self.questions.evaluation[0]
        self.at = self.saving.restore(done, examples, steps, probe)

    def run_on(self) -> None:
        """All iterations that are left, or until they stop helping."""
        if self.at.iteration == 1 and not self.at.folder:
            self.run.write_held_out(self.questions.evaluation)
            self._evaluate(0)
            self.at = Progress(1)  # whose time begins now
        while self.at.iteration <= self.recipe.training.iterations:
            if self._no_longer_helps():
                break
            self._iterate(self.at.iteration)
            self.hits = (self.at.sampled + self.teams.statistics("selector")).prefix_cache_hits
            with self.at.timeline.stage("synchronise"):
                gaps = self.teams.synchronise(self.at.iteration, self.questions.evaluation[0])
            summary = self._evaluate(self.at.iteration)
            self._finish(self.at.iteration, summary, gaps)
            self.at = self.at.next()
        self.report.write()

    def _iterate(self, iteration: int) -> None:
        """One E-step and one M-step, or what is left of them."""
        if not self.at.rollouts or self.teams.are_stale(self.at.rollouts):
            self._sample(iteration)
        ahead = self.recipe.rollout.overlap and iteration < self.recipe.training.iterations
        wait = self.teams.begin_select(*self._to_sample(iteration + 1)) if ahead else None
        self._learn_from(iteration)
        self.run.write_rollouts(iteration, self.at.scored, self.at.weighted)
        if wait:
            with self._stage(iteration, "rollout", len(self.at.rollouts)):
                self.at.ahead = wait()

    def _learn_from(self, iteration: int) -> None:
        """The rest of the E-step, and the M-step."""
        if scores_while_learning(self.recipe, self.reward):
            self._score_and_learn(iteration)
            return
        if not self.at.weighted:
            self.at.scored = self._score(iteration, self.at.rollouts)
            self.at.weighted = self._weigh(iteration, self.at.scored)
            self.saving.save(self.at)
        self._learn(iteration)

    def _sample(self, iteration: int) -> None:
        """E-step: z_1..z_m ~ q(z|x) for the iteration's questions."""
        what = self._to_sample(iteration)
        with self._stage(iteration, "rollout", len(what[0])) as advance:
            self.at.rollouts = self.teams.select(*what, advance)
        self.at.sampled = self.teams.statistics("selector")
        if self.recipe.decoding != "retriever":
            tokens = sum(map(sampled_tokens, self.at.rollouts)) or self.at.sampled.computed
            self.at.timeline.add("rollout", tokens=tokens)
        self.saving.save(self.at)

    def _to_sample(self, iteration: int) -> tuple[list[Example], int, int]:
        """Questions, selections of each, and the seed."""
        examples = questions_of(self.recipe, self.questions.train, iteration)
        seed = seed_of(self.recipe, "rollout", iteration)
        return examples, self.recipe.algorithm.samples, seed

    def _score(self, iteration: int, rollouts: Sequence[Rollout]) -> list[ScoredRollout]:
        """E-step: log r(z_i)."""
        answers = None
        if "answer" in self.reward.needs:
            with self._stage(iteration, "answer", len(rollouts)) as advance:
                answers = self.teams.answer_all(rollouts, advance)
            self.at.timeline.add("answer", tokens=self.teams.statistics("generator").computed)
        with self._stage(iteration, "reward", len(rollouts)) as advance:
            scored = self.teams.score(rollouts, answers, advance)
        self.at.timeline.add("reward", tokens=self.teams.scored_tokens())
        return scored

    def _weigh(self, iteration: int, scored: Sequence[ScoredRollout]) -> list[WeightedRollout]:
        """E-step: the coefficients."""
        stage = partial(self._stage, iteration)
        return weigh_rollouts(self.teams, self.at, scored, stage, self.console.say)

    def _learn(self, iteration: int) -> None:
        """M-step: both policies take the same batches side by side."""
        at, learners = self.at, self.teams.learners
        left = (self._batches(len(at.weighted)) * self.recipe.training.epochs)[at.step :]
        questions = sum(len(at.weighted[part]) for part in left)
        with self._stage(iteration, "learn", questions) as advance:
            for part in left:
                waits: dict[PolicyName, Callable[[], list[StepMetrics]]] = {
                    p: team.submit("step", at.weighted[part]) for p, team in learners.items()
                }
                done: dict[PolicyName, StepMetrics] = {p: wait()[0] for p, wait in waits.items()}
                self._stepped(iteration, at.scored[part], at.weighted[part], done)
                if self.saving.due:
                    self.saving.save(at)
                advance(len(at.weighted[part]))

    def _score_and_learn(self, iteration: int) -> None:
        """E-step and M-step in one: each batch's rewards come from the forward pass of the
        generator's step on it, and the selector takes them while the generator goes on."""
        at = self.at
        generator, selector = (self.teams.learners.get(p) for p in ("generator", "selector"))
        assert generator is not None
        left = [at.rollouts[part] for part in self._batches(len(at.rollouts))[at.step :]]
        begun: Callable[[], list] | None = None
        with self._stage(iteration, "learn", sum(map(len, left))) as advance:
            for batch, following in zip_longest(left, left[1:]):
                wait = begun or generator.submit("step_and_score", batch)
                ((told, some),) = wait()
                due = self.saving.due  # what is saved are both policies after the same step
                begun = None
                if following and not due:
                    begun = generator.submit("step_and_score", following)
                done: dict[PolicyName, StepMetrics] = {"generator": told}
                weights = self._weigh(iteration, some)
                if selector is not None:
                    (done["selector"],) = selector.submit("step", weights)()
                at.scored += some
                at.weighted += weights
                self._stepped(iteration, some, weights, done)
                if due:
                    self.saving.save(at)
                advance(len(some))

    def _batches(self, questions: int) -> list[slice]:
        size = self.recipe.training.batch_size
        return [slice(i, i + size) for i in range(0, questions, size)]

    def _steps_before(self, iteration: int) -> int:
        return steps_per_iteration(self.recipe, len(self.questions.train)) * (iteration - 1)

    def _stepped(
        self,
        iteration: int,
        scored: Sequence[ScoredRollout],
        weighted: Sequence[WeightedRollout],
        done: Mapping[PolicyName, StepMetrics],
    ) -> None:
        """Count a step, and write its metrics."""
        self.at.step += 1
        self.run.append_metrics(
            {
                "iteration": iteration,
                "step": self._steps_before(iteration) + self.at.step,
                **rollout_metrics(self.recipe, scored, weighted),
                **learner_metrics(done),
            }
        )
        tell_bad_steps(self.recipe, done, self.console.say)
        for policy, told in done.items():
            flops = self.use.flops(policy, told.tokens, scored, weighted)
            self.at.timeline.add("learn", tokens=told.tokens, flops=flops)

    def _evaluate(self, iteration: int) -> dict[str, Any]:
        """The summary of an iteration's evaluation; empty where it has none."""
        if not self.recipe.evaluates(iteration):
            self.teams.forget_usage()  # the probe's, or the next iteration would count it
            return {}
        with self.at.timeline.stage("evaluate"):
            summary, rows = evaluate(self.teams, self.questions.evaluation, iteration, self.console)
        usage = self.teams.statistics("selector") + self.teams.statistics("generator")
        self.at.timeline.add("evaluate", tokens=usage.computed + self.teams.scored_tokens())
        self.run.write_evaluation(f"iteration-{iteration:04d}", summary, rows)
        for setting, metric in self.recipe.watched.items():
            if summary[metric] is None:
                raise UserError(
                    f"{setting}: {metric} is not defined on these questions (none has what it "
                    "looks at: gold documents, or a reward): name another"
                )
        return summary

    def _no_longer_helps(self) -> bool:
        """Whether `training.early_stop.patience` evaluations have found no new best."""
        early, summaries = self.recipe.training.early_stop, self.run.evaluations()
        if early is None or not early.stops(summaries):
            return False
        best = early.best(summaries)
        self.console.say(
            f"stopped early: no better {early.metric} since iteration {best}; evaluate and answer "
            f"take it with --iteration {best}"
        )
        return True

    def _finish(
        self, iteration: int, summary: dict[str, Any], gaps: Mapping[PolicyName, float]
    ) -> None:
        """Metrics of the iteration as a whole, then its checkpoint counts: a row that a crash
        leaves without one is dropped on resuming, one lost behind a checkpoint would stay lost.
        """
        with self.at.timeline.stage("checkpoint"):
            self.saving.write(self.at)
        self.run.append_metrics(
            {
                "iteration": iteration,
                **iteration_metrics(summary, gaps, self.at.running_mean, self.hits),
                **peak_memory(self.teams),
                **self.at.timeline.figures(self.use.peak),
            }
        )
        self.saving.publish(self.at)
        self.report.refresh()
        if summary:
            self.console.progress(self.run.evaluations())

    @contextmanager
    def _stage(self, iteration: int, name: str, total: int) -> Iterator:
        last = self.recipe.training.iterations
        with (
            self.at.timeline.stage(name),
            self.console.stage(f"iteration {iteration}/{last}: {name}", total, "questions") as a,
        ):
            yield a
