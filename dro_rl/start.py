"""What a run starts from, and what is refused before a process is started."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dro_rl import checkpoint
from dro_rl.data import Split
from dro_rl.errors import UserError
from dro_rl.questions import check_prompts, iteration_size, load_questions
from dro_rl.recipe import POLICIES, PolicyName, Recipe
from dro_rl.reward import Reward, load_reward
from dro_rl.sections.algorithm import DroAlgorithm
from dro_rl.sections.reward import in_words
from dro_rl.tracking.console import Console
from dro_rl.tracking.run_directory import RunDirectory
from dro_rl.tracking.trackers import check_trackers


@dataclass(frozen=True)
class Start:
    """What a run starts from: its questions, its reward, the iterations it has done, and what its
    processes are made with."""

    questions: Split
    reward: Reward
    done: int
    models: dict[PolicyName, str]


def prepare(recipe: Recipe, console: Console, resume: RunDirectory | None) -> Start:
    """Everything that can be refused before a process is started.

    Raises:
        UserError: bad input; nothing has been written.
    """
    if resume is None:
        RunDirectory.check(recipe)
    check_trackers(recipe)
    questions = load_questions(recipe, console)
    reward = load_reward(recipe.reward)
    if recipe.generator.is_none and reward.needs:
        raise UserError(
            f"generator: none, and {in_words(recipe.reward)} needs a generator's "
            f"{' and '.join(reward.needs)}: give the recipe a generator, or take a reward of "
            "documents alone, such as rewards/answer_in_documents.py or rewards/gold_recall.py"
        )
    per_token = isinstance(recipe.algorithm, DroAlgorithm) and recipe.algorithm.tau == "per_token"
    if per_token and "likelihood" not in reward.needs:
        raise UserError(
            f"algorithm.tau: per_token divides a log-likelihood by the answer's length, and "
            f"{in_words(recipe.reward)} is made of none: give a number"
        )
    if reward.scale == "log" and getattr(recipe.algorithm, "maximise", None) == "reward":
        console.say(
            f"note: algorithm.kind: {recipe.algorithm.kind} maximises the likelihood itself, which "
            "is tiny for long answers, and so are its advantages: algorithm.maximise=log_reward "
            "takes its logarithm"
        )
    done = checkpoint.latest_good(resume, console.say) if resume else 0
    if resume and done >= recipe.training.iterations:
        raise UserError(
            f"{resume.path}: has done its {done} iterations; add training.iterations=N to go on"
            f"{checkpoint.how_to_evaluate(resume)}"
        )
    # Of a resumed run too: engines are given the learners' weights before any work, and one that
    # is made again may outlive the checkpoint that the run went on from (tracking.keep_last).
    models: dict[PolicyName, str] = {p: recipe.policy(p).model for p in POLICIES}
    check_prompts(recipe, models, questions)
    return Start(questions, reward, done, models)


def steps_per_iteration(recipe: Recipe, available: int) -> int:
    """Optimiser steps of one M-step."""
    size = iteration_size(recipe, available)
    return math.ceil(size / recipe.training.batch_size) * recipe.training.epochs


def scores_while_learning(recipe: Recipe, reward: Reward) -> bool:
    """Whether one forward pass of the generator gives the rewards and its gradient.

    Rewards must follow from the generator's likelihoods here, one question's coefficients must not
    need another's rewards, and every rollout must be trained on once, under the policy that sampled
    it.
    """
    lora = recipe.generator.lora
    return (
        recipe.training.weights == "fresh"
        and tuple(reward.needs) == ("likelihood",)
        and not reward.remote
        and "generator" in recipe.algorithm.train
        and recipe.algorithm.kind in ("dro", "maxrl", "grpo", "rloo")
        and recipe.training.epochs == 1
        and recipe.rollout.on_policy
        and not recipe.generator.prune
        and not (lora and lora.dropout)
    )
