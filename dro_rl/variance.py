"""How noisy the selector's gradient is: by estimator, by m and over a run's iterations.

The gradient of a question's group is sum_i c_i grad log p_s(z_i|x), so with the Gram matrix
G of the gradients of its distinct selections, any estimator's variance follows from coefficients
alone: the trace of the covariance of J^T c is the mean of (c - mean c)^T G (c - mean c). One
backward pass a distinct selection serves all estimators, all m and all repeats.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console as RichConsole

from dro_rl import checkpoint
from dro_rl.algorithms import Group, weigh
from dro_rl.algorithms.dro import importance_weights
from dro_rl.cluster.processes import open_cluster
from dro_rl.errors import UserError
from dro_rl.learner import Learner
from dro_rl.policy.targets import Target
from dro_rl.questions import load_questions, seed_of
from dro_rl.recipe import POLICIES, PolicyName, Recipe
from dro_rl.records import Example, ScoredRollout
from dro_rl.reward import load_reward
from dro_rl.roles import start_teams
from dro_rl.sections.algorithm import Algorithm, DroAlgorithm, ReinforceAlgorithm, RlooAlgorithm
from dro_rl.teams import Teams
from dro_rl.tracking.console import Console
from dro_rl.tracking.run_directory import RunDirectory, write_text

SIZES = (1, 2, 4, 8, 16)
"""The m that are compared."""
_MOST_GIB = 16  # of gradients held at once


@dataclass(frozen=True, slots=True)
class Row:
    """One estimator at one m and iteration, averaged over questions.

    `gradient_variance` is the trace of the covariance of a question's gradient, and `signal` the
    squared norm of its mean, both in squared nats a unit of parameters; `noise` is the first over
    the second, which no constant factor of an estimator changes. `weight_variance` is that of the
    m normalised weights of a group (0 for m = 1, whose weight is 1).
    """

    iteration: int
    estimator: str
    samples: int
    gradient_variance: float
    signal: float
    noise: float
    weight_variance: float


def estimators(samples: int) -> dict[str, Algorithm]:
    """What is compared at m, with tau 1: of log E[r] and of E[r], with and without a baseline."""
    found: dict[str, Algorithm] = {
        "dro": DroAlgorithm(samples=samples),
        "reinforce without baseline": ReinforceAlgorithm(
            kind="reinforce", samples=samples, decay=1.0
        ),
    }
    if samples > 1:
        found["dro, baseline: uniform"] = DroAlgorithm(samples=samples, baseline="uniform")
        found["rloo"] = RlooAlgorithm(kind="rloo", samples=samples)
    return found


def measure(
    folder: Path, recipe: Recipe, questions: int, repeats: int, console: Console
) -> list[Row]:
    """The variance at every checkpoint of a run, the warm start first; written to variance.csv.

    Args:
        folder: the run directory.
        recipe: the run's; everything runs in this process.
        questions: training questions to average over.
        repeats: groups of the largest m that are drawn for each question.
    Raises:
        UserError: the run does not train a selector that selects by itself.
    """
    if recipe.decoding not in ("free", "distinct") or not recipe.rollout.unchanged:
        raise UserError(
            "the variance is that of a selector that samples its own selections: this run's "
            "decoding or temperature is another"
        )
    if recipe.selector.kind != "causal_lm":
        raise UserError("the variance is measured of a selector that is a causal LM")
    if recipe.selector.lora:
        raise UserError("the variance is measured of full weights: this run's selector has LoRA")
    run = RunDirectory.open(folder)
    train = load_questions(recipe, console).train[:questions]
    rows: list[Row] = []
    for iteration in [0, *checkpoint.kept(run)]:
        here = _at(recipe, run, iteration)
        quiet = Console(RichConsole(file=io.StringIO()))
        with open_cluster(here.cluster, 1) as cluster:
            models: dict[PolicyName, str] = {p: here.policy(p).model for p in POLICIES}
            teams = start_teams(here, cluster, models, quiet, None)
            scored = _scored(here, teams, train, repeats * max(SIZES))
        learner = Learner(here, "selector", here.selector.model, 1, 1e-6)
        found = []
        with console.stage(f"iteration {iteration}: variance", len(train), "questions") as advance:
            for one in scored:
                found.append(_of_question(learner, one, iteration))
                advance(1)
        rows += [_mean(same) for same in zip(*found, strict=True)]
    write_text(folder / "variance.csv", _csv(rows))
    return rows


def _at(recipe: Recipe, run: RunDirectory, iteration: int) -> Recipe:
    """The recipe with an iteration's policies, all in this process."""
    settings = recipe.resolved()
    for policy in POLICIES:
        initial = settings[policy]["model"]
        settings[policy]["model"] = checkpoint.policy_folder(run, iteration, policy, initial)
        settings[policy]["ranks"] = 1
    settings["rollout"]["engine"] = "transformers"
    settings["cluster"]["mode"] = "local"
    settings["algorithm"] = {"kind": "dro", "train": ["selector"]}
    return Recipe.model_validate(settings)


def _scored(
    recipe: Recipe, teams: Teams, examples: Sequence[Example], count: int
) -> list[ScoredRollout]:
    def nothing(done: int) -> None:
        pass

    rollouts = teams.select(examples, count, seed_of(recipe, "variance", 0), nothing)
    needs = load_reward(recipe.reward).needs
    answers = teams.answer_all(rollouts, nothing) if "answer" in needs else None
    return teams.score(rollouts, answers, nothing)


def _of_question(learner: Learner, scored: ScoredRollout, iteration: int) -> list[Row]:
    selections = scored.rollout.selections
    distinct = {s.token_ids: i for i, s in enumerate(reversed(selections))}
    column = {ids: j for j, ids in enumerate(distinct)}
    gram = _gram(learner, scored, list(column))
    drawn = np.array([column[s.token_ids] for s in selections])
    log_rewards = np.array(scored.log_rewards)
    rows = []
    for m in SIZES:
        groups = np.arange(len(drawn) // m * m).reshape(-1, m)
        sets = [
            Group("", tuple(log_rewards[g]), answer_tokens=scored.answer_tokens) for g in groups
        ]
        weights = [importance_weights(s.log_rewards) for s in sets]
        spread = float(np.mean([np.var(w) for w in weights]))
        for name, algorithm in estimators(m).items():
            weighed, _ = weigh(algorithm, sets, 0.0)
            coefficients = np.zeros((len(groups), len(column)))
            rows_of = np.repeat(np.arange(len(groups)), m)
            values = np.array([c.selector for c in weighed]).ravel()
            np.add.at(coefficients, (rows_of, drawn[groups].ravel()), values)
            variance, signal = moments(coefficients, gram)
            rows.append(Row(iteration, name, m, variance, signal, 0.0, spread))
    return rows


def moments(coefficients: np.ndarray, gram: np.ndarray) -> tuple[float, float]:
    """Trace of the covariance, and squared norm of the mean, of the gradients J^T c.

    Args:
        coefficients: (groups, selections) c of independent groups, at least 2.
        gram: (selections, selections) J J^T.
    Returns:
        both without bias: the mean of n draws has 1/n of their variance, which is taken off.
    """
    n = len(coefficients)
    mean = coefficients.mean(0)
    apart = coefficients - mean
    variance = float(np.einsum("gi,ij,gj->", apart, gram, apart) / (n - 1))
    return variance, float(mean @ gram @ mean) - variance / n


def _gram(learner: Learner, scored: ScoredRollout, distinct: Sequence) -> np.ndarray:
    rows = []
    for token_ids in distinct:
        completion = learner.objective.selection(scored.rollout, token_ids)
        (logp,) = learner.objective.log_likelihoods([Target((completion,))])
        grads = torch.autograd.grad(logp, list(learner.trainable.values()), allow_unused=True)
        rows.append(torch.cat([g.flatten() for g in grads if g is not None]))
        held = len(distinct) * rows[0].numel() * rows[0].element_size() / 2**30
        if held > _MOST_GIB:
            raise UserError(
                f"{len(distinct)} different selections of a question times the selector's weights "
                f"take {held:.0f} GiB: give fewer --repeats, or measure a smaller selector"
            )
    jacobian = torch.stack(rows)
    return (jacobian @ jacobian.T).double().cpu().numpy()


def _mean(rows: Sequence[Row]) -> Row:
    first = rows[0]
    variance = float(np.mean([r.gradient_variance for r in rows]))
    signal = float(np.mean([r.signal for r in rows]))
    noise = variance / signal if signal > 0 else float("nan")
    spread = float(np.mean([r.weight_variance for r in rows]))
    return Row(first.iteration, first.estimator, first.samples, variance, signal, noise, spread)


def _csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Row.__dataclass_fields__)
    writer.writerows([getattr(r, name) for name in Row.__dataclass_fields__] for r in rows)
    return text.getvalue()
