"""The EM loop of DRO (Algorithm 1 of arXiv 2505.03075), on whatever cluster it is given."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from dro_rl import checkpoint
from dro_rl.at_work import alone
from dro_rl.cluster.processes import open_cluster
from dro_rl.data import Split
from dro_rl.ending import says_how_to_go_on
from dro_rl.errors import UserError
from dro_rl.evaluator import evaluate
from dro_rl.m_step import MStep
from dro_rl.progress import Progress
from dro_rl.questions import questions_of, seed_of
from dro_rl.recipe import PolicyName, Recipe
from dro_rl.records import Example, Rollout, ScoredRollout, WeightedRollout
from dro_rl.recovery import keep_going
from dro_rl.reward import Reward
from dro_rl.roles import process_count, rank_count, start_teams, taken_gpus
from dro_rl.saving import Saving
from dro_rl.start import prepare, scores_while_learning, steps_per_iteration
from dro_rl.step_metrics import iteration_metrics
from dro_rl.teams import Teams
from dro_rl.timeline import sampled_tokens
from dro_rl.tracking.console import Advance, Console
from dro_rl.tracking.report import LiveReport
from dro_rl.tracking.run_directory import RunDirectory
from dro_rl.tracking.trackers import following
from dro_rl.usage import peak_memory
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
        self.saving = Saving(recipe, run, teams, console)
        self.steps = steps_per_iteration(recipe, len(questions.train))
        self.m_step = MStep(run, teams, self.saving, self.steps, console.say)
        self.hits = math.nan  # share of prompt tokens that sampling read from prefix caches

    def restore(self, done: int) -> None:
        """Put the run and all its processes into the state that was saved last after iteration
        `done`, in the middle of the next one where that has been saved.

        Needs nothing of them but that they are there: engines may hold any weights and the caches
        anything. Learners may be fresh; before the first checkpoint (0) they have to be.
        """
        examples, *_ = self._to_sample(done + 1)
        probe = self.questions.evaluation[0]
        self.at = self.saving.restore(done, examples, self.steps * done, probe)

    def run_on(self) -> None:
        """All iterations that are left, or until they stop helping."""
        if self.at.iteration == 1 and not self.at.folder:
            self.run.write_held_out(self.questions.evaluation)
            self._evaluate(0)
            self.at = Progress(1)  # whose time begins now
        while self.at.iteration <= self.recipe.training.iterations:
            if self._no_longer_helps():
                break
            self._iterate()
            self.hits = (self.at.sampled + self.teams.statistics("selector")).prefix_cache_hits
            with self.at.timeline.stage("synchronise"):
                gaps = self.teams.synchronise(self.at.iteration, self.questions.evaluation[0])
            summary = self._evaluate(self.at.iteration)
            self._finish(summary, gaps)
            self.at = self.at.next()
        self.report.write()

    def _iterate(self) -> None:
        """One E-step and one M-step, or what is left of them."""
        iteration = self.at.iteration
        if not self.at.rollouts or self.teams.are_stale(self.at.rollouts):
            self._sample()
        ahead = self.recipe.rollout.overlap and iteration < self.recipe.training.iterations
        wait = self.teams.begin_select(*self._to_sample(iteration + 1)) if ahead else None
        self._learn()
        self.run.write_rollouts(iteration, self.at.scored, self.at.weighted)
        if wait:
            with self._stage("rollout", len(self.at.rollouts)):
                self.at.ahead = wait()

    def _learn(self) -> None:
        """The rest of the E-step, and the M-step."""
        if scores_while_learning(self.recipe, self.reward):
            self.m_step.score_and_learn(self.at, self._weigh, self._stage)
            return
        if not self.at.weighted:
            self.at.scored = self._score(self.at.rollouts)
            self.at.weighted = self._weigh(self.at.scored)
            self.saving.save(self.at)
        self.m_step.learn(self.at, self._stage)

    def _sample(self) -> None:
        """E-step: z_1..z_m ~ q(z|x) for the iteration's questions."""
        what = self._to_sample(self.at.iteration)
        with self._stage("rollout", len(what[0])) as advance:
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

    def _score(self, rollouts: Sequence[Rollout]) -> list[ScoredRollout]:
        """E-step: log r(z_i)."""
        answers = None
        if "answer" in self.reward.needs:
            with self._stage("answer", len(rollouts)) as advance:
                answers = self.teams.answer_all(rollouts, advance)
            self.at.timeline.add("answer", tokens=self.teams.statistics("generator").computed)
        with self._stage("reward", len(rollouts)) as advance:
            scored = self.teams.score(rollouts, answers, advance)
        self.at.timeline.add("reward", tokens=self.teams.scored_tokens())
        return scored

    def _weigh(self, scored: Sequence[ScoredRollout]) -> list[WeightedRollout]:
        """E-step: the coefficients."""
        return weigh_rollouts(self.teams, self.at, scored, self._stage, self.console.say)

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
        early = self.recipe.training.early_stop
        summaries = self.recipe.counting(self.run.evaluations())
        if early is None or not early.stops(summaries):
            return False
        best = early.best(summaries)
        self.console.say(
            f"stopped early: no better {early.metric} since iteration {best}; evaluate and answer "
            f"take it with --iteration {best}"
        )
        return True

    def _finish(self, summary: dict[str, Any], gaps: Mapping[PolicyName, float]) -> None:
        """Metrics of the iteration as a whole, then its checkpoint counts: a row that a crash
        leaves without one is dropped on resuming, one lost behind a checkpoint would stay lost.
        """
        with self.at.timeline.stage("checkpoint"):
            self.saving.write(self.at)
        self.run.append_metrics(
            {
                "iteration": self.at.iteration,
                **iteration_metrics(summary, gaps, self.at.running_mean, self.hits),
                **peak_memory(self.teams),
                **self.at.timeline.figures(self.m_step.use.peak),
            }
        )
        self.saving.publish(self.at)
        self.report.refresh()
        if summary:
            self.console.progress(self.run.evaluations())

    @contextmanager
    def _stage(self, name: str, total: int) -> Iterator[Advance]:
        """Of the timeline and the console: its name, and how many questions it has."""
        of = f"{self.at.iteration}/{self.recipe.training.iterations}"
        with (
            self.at.timeline.stage(name),
            self.console.stage(f"iteration {of}: {name}", total, "questions") as advance,
        ):
            yield advance
