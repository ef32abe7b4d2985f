"""Our GRPO and RLOO against TRL's: the same rollouts, the loss and the gradient of each.

    python benchmarks/trl_parity.py

TRL's own trainers run one training step each: their sampling is replaced by completions that our
rollout worker drew, their tokenisation of prompts by ours, and between what they compute at
sampling (advantages, old log-probabilities, the reference's) and their loss the weights change
where a case is off policy. Everything else is theirs. On our side the same rollouts go through
`dro_rl.algorithms.weigh` and `Learner.backward`. Three policies, each a small random Llama in
float32: the one that training starts from (the reference), the one that sampled, the one that
learns. Prints a row a case and exits with 1 where a relative error exceeds `TOLERANCE`.

TRL divides Dr. GRPO's sum over tokens by the longest completion, we don't; `max_new_tokens` is
multiplied back. TRL's RLOO takes its divergence off the rewards, ours has none: its beta is 0. TRL
multiplies GRPO's divergence by the ratio to the old policy unless told not to (the estimator of
DeepSeek-V3.2); here it is told to take GRPO's own, eq. 4 of arXiv 2402.03300. Equal rewards that
float32 cannot hold, such as 2/3, get advantages of up to 1e-3 instead of 0 from TRL, whose mean of
them is off by a rounding and whose deviation is 1e-4 then; the cases avoid them.
"""

from __future__ import annotations

import math
import sys
import tempfile
import warnings
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
warnings.filterwarnings("ignore", message="TRL currently supports vLLM", category=UserWarning)

from benchmarks.trl_problem import (  # noqa: E402
    QUESTIONS,
    SAMPLES,
    Case,
    Problem,
    Weights,
    make_problem,
)
from dro_rl.algorithms import Group, weigh  # noqa: E402
from dro_rl.learner import Learner  # noqa: E402
from dro_rl.libraries import quiet_libraries  # noqa: E402
from dro_rl.records import WeightedRollout  # noqa: E402

TOLERANCE = 1e-4

CASES = [
    *(
        Case(
            f"grpo scale={scale} kl={kl:g}",
            {"kind": "grpo", "scale": scale, "kl": kl, "clip": 0.2},
            off,
        )
        for scale in ("std", "none")
        for kl in (0.0, 0.1)
        for off in (False, True)
    ),
    *(Case("rloo", {"kind": "rloo", "clip": 0.2}, off) for off in (False, True)),
    Case("grpo scale=std kl=0.1", {"kind": "grpo", "kl": 0.1, "clip": 0.05}, True, seed=1),
    Case("grpo scale=none kl=0.1", {"kind": "grpo", "scale": "none", "kl": 0.1}, True, seed=1),
    Case("rloo", {"kind": "rloo", "clip": 0.05}, True, seed=1),
]


@dataclass(frozen=True)
class Side:
    """What one implementation computed. `clipped` is the share of a selection's tokens (RLOO: of
    selections) whose gradient the clip removed; not asked of TRL, which averages it otherwise."""

    loss: float
    gradient: Weights
    clipped: float = math.nan


@dataclass(frozen=True)
class Gap:
    """Theirs against ours; relative errors, but for `largest`, of one entry of the gradient."""

    loss: float
    gradient: float
    largest: float

    @property
    def worst(self) -> float:
        return max(self.loss, self.gradient)


# --- ours -----------------------------------------------------------------------------------------


def ours(problem: Problem) -> Side:
    """Through `weigh` and the learner, in micro-batches of two questions."""
    recipe = problem.recipe
    learner = Learner(recipe, "selector", recipe.selector.model, 1, 1e-3)
    learner.model.load_state_dict(problem.current)
    groups = [
        Group(r.example.id, tuple(math.log(v) if v else -math.inf for v in rewards))
        for r, rewards in zip(problem.rollouts, problem.rewards, strict=True)
    ]
    weighed, _ = weigh(recipe.algorithm, groups)
    batch = [
        WeightedRollout(r, c.selector, c.generator)
        for r, c in zip(problem.rollouts, weighed, strict=True)
    ]
    totals = learner.backward([learner.objective.targets(w) for w in batch])
    gradient = {n: p.grad.clone() for n, p in learner.model.named_parameters()}
    return Side(totals.loss, gradient, totals.clipped)


# --- TRL's ----------------------------------------------------------------------------------------


def theirs(problem: Problem) -> Side:
    """One training step of TRL's trainer on the given completions."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    recipe, algorithm = problem.recipe, problem.recipe.algorithm
    grpo = algorithm.kind == "grpo"
    base, config = (GRPOTrainer, GRPOConfig) if grpo else (RLOOTrainer, RLOOConfig)
    by_name = {r.example.id: i for i, r in enumerate(problem.rollouts)}
    losses: list[float] = []
    gradient: Weights = {}

    class Given(base):  # type: ignore[misc, valid-type]
        """The trainer with its tokenisation and sampling given."""

        def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict]:
            self.asked = [by_name[p] for p in prompts]
            return [list(problem.rollouts[i].prompt_ids) for i in self.asked], None, {}

        def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
            seen = [self.asked[:i].count(q) for i, q in enumerate(self.asked)]
            drawn = [
                list(problem.rollouts[q].selections[i].token_ids)
                for q, i in zip(self.asked, seen, strict=True)
            ]
            return (drawn, None) if grpo else drawn

        def _compute_loss(self, model: Any, inputs: Any) -> Tensor:
            model.load_state_dict(problem.current)
            loss = super()._compute_loss(model, inputs)
            losses.append(loss.item())
            return loss

    class Watch(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **found: Any) -> None:
            gradient.update({n: p.grad.clone() for n, p in found["model"].named_parameters()})

    def reward(prompts: list[str], **columns: Any) -> list[float]:
        asked = [by_name[p] for p in prompts]
        return [problem.rewards[q][asked[:i].count(q)] for i, q in enumerate(asked)]

    settings: dict[str, Any] = {
        "epsilon": algorithm.clip,  # type: ignore[union-attr]
        "beta": getattr(algorithm, "kl", 0.0),
        # On policy TRL takes the loss's own log-probabilities for the old ones, off policy it
        # computes them when it samples, which it does with more than one iteration.
        "num_iterations": 2 if problem.current is not problem.sampled else 1,
    }
    if grpo:
        plain = algorithm.scale == "none"  # type: ignore[union-attr]
        settings["loss_type"] = "dr_grpo" if plain else "grpo"
        settings["scale_rewards"] = "none" if plain else "group"
        settings["use_bias_correction_kl"] = False  # GRPO's eq. 4; see the docstring
    with tempfile.TemporaryDirectory() as scratch, redirect_stdout(StringIO()):
        trainer = Given(
            model=AutoModelForCausalLM.from_pretrained(recipe.selector.model),
            processing_class=AutoTokenizer.from_pretrained(recipe.selector.model),
            reward_funcs=[reward],
            train_dataset=Dataset.from_dict({"prompt": list(by_name)}),
            callbacks=[Watch()],
            args=config(
                output_dir=scratch,
                per_device_train_batch_size=QUESTIONS * SAMPLES,
                num_generations=SAMPLES,
                max_completion_length=recipe.selector.max_new_tokens,
                max_steps=1,
                max_grad_norm=0.0,
                gradient_checkpointing=False,
                bf16=False,
                use_cpu=True,
                report_to=[],
                save_strategy="no",
                disable_tqdm=True,
                **settings,
            ),
        )
        trainer.model.load_state_dict(problem.sampled)
        trainer.train()
    scale = 1
    if grpo and algorithm.scale == "none":  # type: ignore[union-attr]
        scale = recipe.selector.max_new_tokens
    (loss,) = losses
    return Side(loss * scale, {n: g * scale for n, g in gradient.items()})


# --- the comparison -------------------------------------------------------------------------------


def gap(reference: Side, other: Side) -> Gap:
    """How far `other` is from `reference`: of the loss, which may be near 0, at least 0.01 counts
    as its size; of the gradient, the norm of the difference over the norm."""
    assert reference.gradient.keys() == other.gradient.keys()
    wanted = torch.cat([g.flatten() for g in reference.gradient.values()])
    got = torch.cat([other.gradient[n].flatten() for n in reference.gradient])
    loss = abs(other.loss - reference.loss) / max(abs(reference.loss), 0.01)
    return Gap(
        loss,
        ((got - wanted).norm() / wanted.norm()).item(),
        (got - wanted).abs().max().item(),
    )


def main() -> int:
    quiet_libraries()
    disable_progress_bar()
    torch.set_num_threads(1)
    print(f"{'case':<24} {'policy':<7} {'seed':>4} {'loss, TRL':>12} {'ours':>12} ", end="")
    print(f"{'rel.':>8} {'gradient':>9} {'largest':>8} {'clipped':>8}")
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            problem = make_problem(case, Path(folder))
            reference, own = theirs(problem), ours(problem)
            found = gap(reference, own)
            failed += found.worst > TOLERANCE
            print(
                f"{case.name:<24} {'off' if case.off_policy else 'on':<7} {case.seed:>4} "
                f"{reference.loss:>12.8f} {own.loss:>12.8f} {found.loss:>8.1e} "
                f"{found.gradient:>9.1e} {found.largest:>8.1e} {own.clipped:>8.2f}"
                + ("  TOO FAR" if found.worst > TOLERANCE else ""),
                flush=True,
            )
    print(f"\n{len(CASES) - failed} of {len(CASES)} cases within {TOLERANCE:g} (relative)")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
