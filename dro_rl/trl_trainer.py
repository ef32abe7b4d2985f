"""What TRL's GRPOTrainer is given and what is kept of it; see `dro_rl.trl_grpo`.

Overrides private methods of trl 1.16, where no public ones would do: prompts as token ids, sampling
in parts, and the generation's log-probabilities and advantages. tests/e2e/test_trl_grpo.py checks
that what they hand over is right.
"""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback

from dro_rl.algorithms import Group
from dro_rl.learner import Learner
from dro_rl.progress import Progress
from dro_rl.prompts import read_selection
from dro_rl.questions import iteration_size, questions_of, seed_of
from dro_rl.records import Example, Rollout, ScoredRollout, Selection, WeightedRollout
from dro_rl.sections.algorithm import TrlGrpoAlgorithm
from dro_rl.step_metrics import rollout_metrics, tell_unrewarded
from dro_rl.timeline import sampled_tokens
from dro_rl.tracking.console import Advance
from dro_rl.trainer import Trainer

with warnings.catch_warnings():  # TRL imports vLLM, which this does not use
    warnings.simplefilter("ignore")
    logging.getLogger("vllm").setLevel(logging.ERROR)
    from trl import GRPOTrainer

    from dro_rl.trl_settings import grpo_config

_KINDS = ("ids", "mask")
_NAMES = {
    "loss": "selector/loss",
    "grad_norm": "selector/grad_norm",
    "clip_ratio/region_mean": "selector/clipped",
    "kl": "selector/kl",
}


class TrlRun(Trainer):
    """Our side of a run that TRL drives: what it asks, and what it leaves to write."""

    def trainer(self, learner: Learner, done: int, scratch: str) -> SelectorTrainer:
        """TRL's trainer for the iterations after the first `done`; it writes to `scratch`."""
        from datasets import Dataset

        self.size = iteration_size(self.recipe, len(self.questions.train))
        left = self.recipe.training.iterations - done
        rows = [f"{done + 1 + i // self.size}/{i % self.size}" for i in range(left * self.size)]
        return SelectorTrainer(
            self, learner, self.steps, Dataset.from_dict({"prompt": rows}), scratch
        )

    def drive(self, trainer: SelectorTrainer) -> None:
        """All iterations that are left, or until they stop helping."""
        if self.at.iteration == 1:
            self.run.write_held_out(self.questions.evaluation)
            self._evaluate(0)
        if not self._no_longer_helps():
            trainer.train()
        self.report.write()

    @lru_cache(maxsize=1)  # noqa: B019  # the run lives as long as the process
    def _examples(self, iteration: int) -> list[Example]:
        return questions_of(self.recipe, self.questions.train, iteration)

    def example(self, prompt: str) -> Example:
        """The question that a row of TRL's data set names: "ITERATION/INDEX"."""
        iteration, index = map(int, prompt.split("/"))
        return self._examples(iteration)[index]

    def score(self, rollouts: Sequence[Rollout]) -> list[ScoredRollout]:
        """Log-rewards by the reward service."""
        self.at.timeline.add("rollout", tokens=sum(map(sampled_tokens, rollouts)))
        return self._score(rollouts)

    def stage(self, name: str, total: int) -> Any:
        """A timed stage on the console."""
        return self._stage(name, total)

    def record(
        self, iteration: int, scored: Sequence[ScoredRollout], weighted: Sequence[WeightedRollout]
    ) -> dict[str, float]:
        """Write an iteration's selections; returns its `rollout/` and `reward/` metrics."""
        groups = [Group(s.rollout.example.id, s.log_rewards) for s in scored]
        tell_unrewarded(groups, self.console.say)
        self.run.write_rollouts(iteration, scored, weighted)
        return rollout_metrics(self.recipe, scored, weighted)

    def finish(self, iteration: int) -> bool:
        """Give the engines the weights, evaluate if it is due, write. Returns whether to go on."""
        with self.at.timeline.stage("synchronise"):
            gaps = self.teams.synchronise(iteration, self.questions.evaluation[0])
        self._finish(self._evaluate(iteration), gaps)
        return not self._no_longer_helps()


class SelectorTrainer(GRPOTrainer):
    """TRL's trainer, told which prompts to take and asked what it made of them.

    Args:
        run: ours.
        learner: the selector, its optimiser and its schedule.
        steps: optimiser steps an iteration.
        rows: prompts, "ITERATION/INDEX", an iteration after the other.
        scratch: a folder that TRL may write to.
    """

    def __init__(self, run: TrlRun, learner: Learner, steps: int, rows: Any, scratch: str) -> None:
        recipe = run.recipe
        self.ours, self.learner, self.steps_an_iteration = run, learner, steps
        self.samples = recipe.algorithm.samples
        self.advance: Advance = lambda done: None
        model = learner.model
        # An engine ends a selection at the tokenizer's end of sequence alone.
        model.generation_config.eos_token_id = learner.writer.tokenizer.eos_token_id
        super().__init__(
            model=model,
            reward_funcs=[self._rewards],
            args=grpo_config(recipe, len(rows) // run.size * steps, run.size, scratch),
            train_dataset=rows,
            processing_class=learner.writer.tokenizer,
            callbacks=[_Report(self)],
            optimizers=(learner.optimisation.optimizer, learner.optimisation.schedule),
        )
        self.remove_callback(PrinterCallback)

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict]:
        """The selector's prompts, as our engines and learners have them."""
        k, writer = self.ours.recipe.selector.documents, self.learner.writer
        asked = {p: self.ours.example(p) for p in dict.fromkeys(prompts)}
        self.prompts = {p: writer.select(e.question, e.candidates, k) for p, e in asked.items()}
        return [list(self.prompts[p].token_ids) for p in prompts], None, {}

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """One generation is one iteration."""
        self.iteration = int(inputs[0]["prompt"].split("/")[0])
        self.ours.at = Progress(self.iteration)
        timeline = self.ours.at.timeline
        torch.manual_seed(seed_of(self.ours.recipe, "rollout", self.iteration))
        start = time.monotonic()
        output = super()._generate_and_score_completions(inputs)
        self.rollout_metrics = self.ours.record(self.iteration, *self._drawn(output))
        staged = sum(s.seconds for s in timeline.stages.values())
        timeline.add("logps", seconds=time.monotonic() - start - staged)
        self.learning = ExitStack()
        epochs = self.ours.recipe.training.epochs
        stage = self.ours.stage("learn", self.ours.size * epochs)
        self.advance = self.learning.enter_context(stage)
        return output

    def _generate_single_turn(
        self, prompt_ids: list, images: Any, multimodal_fields: dict, *args: Any, **kwargs: Any
    ) -> tuple[list, None]:
        """As many sequences at once as an engine of ours runs."""
        m = self.samples
        size = max(1, self.ours.recipe.rollout.max_sequences // m) * m
        drawn = []
        with self.ours.stage("rollout", len(prompt_ids) // m) as advance:
            for start in range(0, len(prompt_ids), size):
                part = prompt_ids[start : start + size]
                ids, _ = super()._generate_single_turn(part, images, {}, *args, **kwargs)
                drawn += ids
                advance(len(part) // m)
        return drawn, None

    def _rewards(
        self, prompts: list[str], completion_ids: list, **columns: Any
    ) -> list[float | None]:
        m, algorithm = self.samples, self.ours.recipe.algorithm
        rollouts = []
        for start in range(0, len(prompts), m):
            example = self.ours.example(prompts[start])
            prompt = self.prompts[prompts[start]]
            selections = [self._selection(example, ids) for ids in completion_ids[start:][:m]]
            rollouts.append(
                Rollout(
                    example,
                    prompt.token_ids,
                    tuple(selections),
                    self.iteration - 1,
                    prompt.truncated_documents,
                )
            )
        self.scored = self.ours.score(rollouts)
        assert isinstance(algorithm, TrlGrpoAlgorithm)
        groups = [Group(s.rollout.example.id, s.log_rewards) for s in self.scored]
        return [r for g in groups for r in g.rewards(algorithm.maximise)]

    def _selection(self, example: Example, ids: Sequence[int]) -> Selection:
        writer, k = self.learner.writer, self.ours.recipe.selector.documents
        text = writer.decode(ids)
        documents, malformed = read_selection(text, len(example.candidates), k)
        return Selection(text, tuple(ids), (0.0,) * len(ids), documents, malformed)

    def _drawn(self, output: dict[str, Any]) -> tuple[list[ScoredRollout], list[WeightedRollout]]:
        """The iteration's selections with TRL's log-probabilities and advantages."""
        m = self.samples
        rows = zip(self._old_logps(output).tolist(), output["advantages"].tolist(), strict=True)
        scored, weighted = [], []
        for s in self.scored:
            selections, coefficients = [], []
            for z in s.rollout.selections:
                logps, advantage = next(rows)
                selections.append(replace(z, logps=tuple(logps[: len(z.token_ids)])))
                coefficients.append(advantage / m)
            rollout = replace(s.rollout, selections=tuple(selections))
            scored.append(replace(s, rollout=rollout))
            weighted.append(WeightedRollout(rollout, tuple(coefficients), (1 / m,) * m))
        return scored, weighted

    def _old_logps(self, output: dict[str, Any]) -> Tensor:
        """TRL has them but where an iteration is a single step, whose ratio is 1."""
        if "old_per_token_logps" in output:
            return output["old_per_token_logps"]
        parts = [[output[f"{part}_{kind}"] for part in ("prompt", "completion")] for kind in _KINDS]
        ids, mask = (torch.cat(p, dim=1) for p in parts)
        width, batch = output["completion_ids"].size(1), self.args.per_device_train_batch_size
        with torch.no_grad():
            return self._get_per_token_logps_and_entropies(
                self.model, ids, mask, width, batch_size=batch
            )[0]


class _Report(TrainerCallback):
    """What TRL logs of a step becomes a row of metrics; the last step ends the iteration."""

    def __init__(self, trainer: SelectorTrainer) -> None:
        self.trainer = trainer

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **found: Any) -> None:
        self.learning_rate = found["optimizer"].param_groups[0]["lr"]

    def on_log(self, args: Any, state: Any, control: Any, **found: Any) -> None:
        trainer, logs = self.trainer, found["logs"]
        if "loss" not in logs:
            return  # the summary at the end
        steps = trainer.steps_an_iteration
        within = (state.global_step - 1) % steps + 1
        trainer.ours.run.append_metrics(
            {
                "iteration": trainer.iteration,
                "step": (trainer.iteration - 1) * steps + within,
                **trainer.rollout_metrics,
                **{_NAMES.get(k, f"trl/{k}"): _number(v) for k, v in logs.items()},
                "selector/learning_rate": self.learning_rate,
            }
        )
        trainer.advance(trainer.ours.recipe.training.batch_size)
        if within == steps:
            trainer.learning.close()
            control.should_training_stop |= not trainer.ours.finish(trainer.iteration)


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
