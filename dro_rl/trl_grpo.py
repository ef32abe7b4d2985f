"""TRL's own GRPOTrainer on the selector (`algorithm.kind: trl_grpo`): an outside arm.

TRL samples (transformers' `generate`), computes advantages, ratios and the loss, and drives the
steps. Ours are the prompts, token for token, the questions and their order, the reward, the
optimiser with its schedule, the evaluation and the run directory. An iteration is one generation
of TRL's: it samples for all of the iteration's questions, then takes the same number of optimiser
steps as ours, each on `training.batch_size` times m selections, which TRL shuffles among the
questions of the iteration. `training.epochs` is TRL's `num_iterations`.

`scale: std` is TRL's loss_type "grpo", `scale: none` its "dr_grpo" with scale_rewards "none".
The divergence is GRPO's (eq. 4 of arXiv 2402.03300), not DeepSeek-V3.2's, which is TRL's default.
TRL runs in the process of the command, also on a cluster.
"""

from __future__ import annotations

import tempfile

from dro_rl import checkpoint
from dro_rl.at_work import alone
from dro_rl.cluster.processes import LocalTeam, open_cluster
from dro_rl.ending import says_how_to_go_on
from dro_rl.errors import UserError
from dro_rl.learner import Learner
from dro_rl.questions import iteration_size
from dro_rl.recipe import Recipe
from dro_rl.roles import process_count, start_teams, taken_gpus
from dro_rl.start import prepare, steps_per_iteration
from dro_rl.tracking.console import Console
from dro_rl.tracking.run_directory import RunDirectory
from dro_rl.tracking.trackers import following


@alone
def train(recipe: Recipe, console: Console, resume: RunDirectory | None = None) -> RunDirectory:
    """Run a recipe to its end, or a run on from its last checkpoint: see `dro_rl.trainer.train`.

    Raises:
        UserError: bad input, or a recipe that TRL cannot run; nothing has been written then.
    """
    start = prepare(recipe, console, resume)
    questions, done = start.questions, start.done
    _check(recipe, len(questions.train))
    from dro_rl.trl_trainer import TrlRun  # TRL takes 10 s to import: after what may be refused

    here = RunDirectory.of(recipe)
    processes, stacks = process_count(recipe, learners=True), here.path / "stacks"
    taken = taken_gpus(recipe, learners=True)
    with (
        open_cluster(recipe.cluster, processes, console.say, stacks, taken=taken) as cluster,
        says_how_to_go_on(lambda: checkpoint.how_to_go_on(here)),
    ):
        teams = start_teams(recipe, cluster, start.models, console, None)
        section, steps = recipe.selector, steps_per_iteration(recipe, len(questions.train))
        learner = Learner(
            recipe,
            "selector",
            section.model,
            recipe.training.iterations * steps,
            section.learning_rate,
        )
        teams.learners["selector"] = LocalTeam([learner])
        run = resume or RunDirectory.create(recipe)
        loop = TrlRun(recipe, run, questions, teams, start.reward, console)
        with tempfile.TemporaryDirectory() as scratch:
            trainer = loop.trainer(learner, done, scratch)  # before restoring: TRL's reference
            loop.restore(done)
            run.write_recipe(recipe)
            with following(recipe, run, console.say):
                loop.drive(trainer)
    return run


def _check(recipe: Recipe, available: int) -> None:
    """Refuse what TRL's trainer does not do."""
    size, batch = iteration_size(recipe, available), recipe.training.batch_size
    if size % batch:
        raise UserError(
            f"algorithm.kind: trl_grpo takes whole batches alone: an iteration's {size} questions "
            f"(training.questions_per_iteration) must be a multiple of training.batch_size, {batch}"
        )
