"""Our PPO against TRL's: the same rollouts, GAE, normalisation, both losses and the gradient.

    pip install --no-deps --target FOLDER "trl==1.12.*"
    python benchmarks/ppo_parity.py FOLDER

TRL had PPO (trl.experimental.ppo) up to 1.12; FOLDER is any empty one outside the environment,
whose other packages serve. TRL's train() runs once: its sampling is replaced by given completions,
its reward model by given rewards, and between sampling and loss the weights change, so that the
clips bind. Its value model is a linear head on the policy's own hidden states, as ours is. GAE is
read off what TRL hands to `masked_whiten`, the losses off its metrics, the gradient off the
optimiser. Prints a row a quantity and exits with 1 where an error exceeds `TOLERANCE`.

Three differences are taken out, and are differences:
- TRL averages its losses over tokens, we sum over tokens and average over selections: here all
  completions have T tokens, and its losses are multiplied by T.
- TRL whitens by the sample variance (n - 1), we by the population's (n): here TRL's is told to take
  n; the table shows what its own gives beside it. It is a factor of sqrt(1 - 1/n).
- Where a completion is shorter than the longest one of the batch, TRL gives the reward to the first
  padding position behind it, as if that were one more state with a value and an action. We give
  it to the last token, as GAE's eq. 16 has it. With completions of one length the two are equal.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import warnings
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from transformers.utils.logging import disable_progress_bar

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
warnings.filterwarnings("ignore", message="TRL currently supports vLLM", category=UserWarning)

from benchmarks.trl_parity import LEVELS, Weights, _moved, _weights  # noqa: E402
from dro_rl.algorithms import Group, weigh  # noqa: E402
from dro_rl.learner import Learner  # noqa: E402
from dro_rl.policy.completion import Completion  # noqa: E402
from dro_rl.recipe import Recipe  # noqa: E402
from dro_rl.records import Rollout, Selection, WeightedRollout  # noqa: E402
from tests.tiny import make_example, make_recipe  # noqa: E402

TOLERANCE = 1e-4
QUESTIONS, SAMPLES, TOKENS = 6, 8, 6
SETTINGS = {"gae_lambda": 0.9, "clip": 0.2, "value_weight": 0.3, "value_clip": 0.2}


@dataclass(frozen=True)
class Problem:
    """Rollouts with rewards, and the weights and value heads that sampled and that learn."""

    recipe: Recipe
    rollouts: list[Rollout]
    rewards: list[tuple[float, ...]]
    sampled: tuple[Weights, Weights]
    current: tuple[Weights, Weights]


@dataclass(frozen=True)
class Side:
    """What one implementation computed. `advantages` are before normalisation, by row and token."""

    advantages: Tensor
    normalised: Tensor
    policy_loss: float
    value_loss: float
    clipped: float
    gradient: Weights


def make_problem(folder: Path) -> Problem:
    recipe = make_recipe(
        folder, algorithm={"kind": "ppo", "samples": SAMPLES, "train": ["selector"], **SETTINGS}
    )
    learner = Learner(recipe, "selector", recipe.selector.model, 1, 1e-3)
    start, width = _weights(learner.model), learner.objective.value_head.in_features  # type: ignore[union-attr]
    draw = torch.Generator().manual_seed(0)
    head = {
        "weight": 0.3 * torch.randn(1, width, generator=draw),
        "bias": torch.full((1,), 0.2),
    }
    sampled = (_moved(start, 0.05, 1), head)
    current = (
        _moved(sampled[0], 0.02, 2),
        {
            "weight": head["weight"] + 0.03 * torch.randn(1, width, generator=draw),
            "bias": head["bias"],
        },
    )
    learner.model.load_state_dict(sampled[0])
    pad, vocabulary = learner.writer.tokenizer.pad_token_id, learner.model.config.vocab_size
    rollouts, rewards = [], []
    for number in range(QUESTIONS):
        example = make_example(number, documents=5 - number % 2)
        prompt = learner.writer.select(example.question, example.candidates, 2).token_ids
        assert pad == 0 and pad not in prompt  # TRL takes it for no token at all
        rows = torch.randint(1, vocabulary, (SAMPLES, TOKENS), generator=draw).tolist()
        with torch.no_grad():
            completions = [Completion(prompt, tuple(ids)) for ids in rows]
            logps = learner.objective.likelihood.tokens(completions).tolist()
        selections = [
            Selection("", tuple(ids), tuple(p), (), True)
            for ids, p in zip(rows, logps, strict=True)
        ]
        rollouts.append(Rollout(example, prompt, tuple(selections), 0))
        levels = torch.randint(len(LEVELS), (SAMPLES,), generator=draw).tolist()
        rewards.append(tuple(LEVELS[i] for i in levels))
    return Problem(recipe, rollouts, rewards, sampled, current)


# --- ours -----------------------------------------------------------------------------------------


def ours(problem: Problem) -> Side:
    """Through `values`, `weigh` and the learner."""
    recipe = problem.recipe
    learner = Learner(recipe, "selector", recipe.selector.model, 1, 1e-3)
    head = learner.objective.value_head
    assert head is not None
    learner.model.load_state_dict(problem.sampled[0])
    head.load_state_dict(problem.sampled[1])
    groups = [
        Group(r.example.id, tuple(math.log(v) if v else -math.inf for v in rewards), values=values)
        for r, rewards, values in zip(
            problem.rollouts, problem.rewards, learner.values(problem.rollouts), strict=True
        )
    ]
    plain, _ = weigh(recipe.algorithm.model_copy(update={"normalise": False}), groups)
    weighed, _ = weigh(recipe.algorithm, groups)
    learner.model.load_state_dict(problem.current[0])
    head.load_state_dict(problem.current[1])
    batch = [
        WeightedRollout(r, c.selector, c.generator, c.tokens)
        for r, c in zip(problem.rollouts, weighed, strict=True)
    ]
    totals = learner.backward([learner.objective.targets(w) for w in batch])
    before, after = (
        torch.tensor([t.advantages for c in w for t in c.tokens]) for w in (plain, weighed)
    )
    value_loss = totals.value_loss
    return Side(
        before,
        after,
        totals.loss - SETTINGS["value_weight"] * value_loss,
        value_loss,
        totals.clipped,
        {n: p.grad.clone() for n, p in learner.trainable.items()},
    )


# --- TRL's ----------------------------------------------------------------------------------------


class _ValueModel(nn.Module):
    """A head on somebody else's backbone, in the form that TRL asks for."""

    base_model_prefix = "model"

    def __init__(self, policy: Any, width: int) -> None:
        super().__init__()
        self.model, self.score = policy.model, nn.Linear(width, 1)


def theirs(problem: Problem, *, sample_variance: bool) -> Side:
    """One update of TRL's PPOTrainer on the given completions and rewards."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    name = problem.recipe.selector.model
    policy: Any = AutoModelForCausalLM.from_pretrained(name)
    tokenizer: Any = AutoTokenizer.from_pretrained(name)
    tokenizer.padding_side = "left"
    value_model = _ValueModel(policy, policy.config.hidden_size)
    reward_model = nn.Linear(1, 1)
    rows = [
        (list(r.prompt_ids), list(s.token_ids), reward)
        for r, rewards in zip(problem.rollouts, problem.rewards, strict=True)
        for s, reward in zip(r.selections, rewards, strict=True)
    ]
    place = {tuple(p + c): i for i, (p, c, _) in enumerate(rows)}
    seen: dict[str, Any] = {}
    gradient: Weights = {}

    def load(weights: tuple[Weights, Weights]) -> None:
        policy.load_state_dict(weights[0])
        value_model.score.load_state_dict(weights[1])

    def row(ids: Tensor) -> int:
        return place[tuple(ids[ids != tokenizer.pad_token_id].tolist())]

    def generation(model: Any, queries: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
        left = {i: p for i, (p, _, _) in enumerate(rows)}
        drawn = []
        for query in queries:
            prompt = query[query != tokenizer.pad_token_id].tolist()
            i = next(i for i, p in left.items() if p == prompt)
            del left[i]
            drawn.append(rows[i][1])
        joined = torch.cat([queries, torch.tensor(drawn)], 1)
        logits = original["forward"](model, joined, tokenizer.pad_token_id).logits
        return joined, logits[:, queries.shape[1] - 1 : -1]

    def reward(model: Any, ids: Tensor, pad: int, context: int) -> Any:
        if model is not reward_model:
            return original["get_reward"](model, ids, pad, context)
        seen["order"] = [*seen.get("order", []), *map(row, ids)]
        return None, torch.tensor([rows[row(i)][2] for i in ids]), None

    def forward(model: Any, ids: Tensor, pad: int) -> Any:
        if isinstance(model, ppo_trainer.PolicyAndValueWrapper):
            load(problem.current)
        return original["forward"](model, ids, pad)

    def variance(values: Tensor, mask: Tensor, unbiased: bool = True) -> Tensor:
        return original["masked_var"](values, mask, sample_variance)

    def whiten(values: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
        seen["advantages"] = values
        seen["normalised"] = original["masked_whiten"](values, mask, shift_mean)
        return seen["normalised"]

    def keep(optimizer: Any, *args: Any) -> None:
        gradient.update({n: p.grad.clone() for n, p in policy.named_parameters()})
        head = value_model.score.named_parameters(prefix="value_head")
        gradient.update({n: p.grad.clone() for n, p in head})

    replaced = {
        "batch_generation": generation,
        "get_reward": reward,
        "forward": forward,
        "masked_var": variance,
        "masked_whiten": whiten,
    }
    original = {n: getattr(ppo_trainer, n) for n in replaced}
    optimizer = torch.optim.SGD([*policy.parameters(), *value_model.score.parameters()], lr=0.0)
    optimizer.register_step_pre_hook(keep)
    load(problem.sampled)
    with (
        tempfile.TemporaryDirectory() as scratch,
        redirect_stdout(StringIO()),
        patch.multiple(ppo_trainer, **replaced),
    ):
        trainer = PPOTrainer(
            args=PPOConfig(
                output_dir=scratch,
                total_episodes=len(rows),
                per_device_train_batch_size=len(rows),
                gradient_accumulation_steps=1,
                num_mini_batches=1,
                num_ppo_epochs=1,
                response_length=TOKENS,
                local_rollout_forward_batch_size=len(rows),
                temperature=1.0,
                kl_coef=0.0,
                cliprange=SETTINGS["clip"],
                cliprange_value=SETTINGS["value_clip"],
                vf_coef=SETTINGS["value_weight"],
                gamma=1.0,
                lam=SETTINGS["gae_lambda"],
                whiten_rewards=False,
                missing_eos_penalty=None,
                num_sample_generations=0,
                gradient_checkpointing=False,
                bf16=False,
                use_cpu=True,
                report_to=[],
                save_strategy="no",
                logging_steps=1,
                disable_tqdm=True,
            ),
            processing_class=tokenizer,
            model=policy,
            ref_model=AutoModelForCausalLM.from_pretrained(name),
            reward_model=reward_model,
            value_model=value_model,
            train_dataset=Dataset.from_dict({"input_ids": [p for p, _, _ in rows]}),
            eval_dataset=Dataset.from_dict({"input_ids": [rows[0][0]]}),
            optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    logged = next(x for x in trainer.state.log_history if "loss/policy_avg" in x)
    order = torch.tensor(seen["order"]).argsort()
    return Side(
        seen["advantages"][order],
        seen["normalised"][order],
        logged["loss/policy_avg"] * TOKENS,
        logged["loss/value_avg"] * TOKENS,
        logged["policy/clipfrac_avg"],
        {n: g * TOKENS for n, g in gradient.items()},
    )


# --- the comparison -------------------------------------------------------------------------------


def gaps(reference: Side, other: Side) -> dict[str, float]:
    """Relative errors of `other` by quantity: the norm of the difference over the norm."""

    def apart(wanted: Tensor, got: Tensor) -> float:
        return ((got - wanted).norm() / wanted.norm()).item()

    assert reference.gradient.keys() == other.gradient.keys()
    flat = [
        torch.cat([s.gradient[n].flatten() for n in reference.gradient]) for s in (reference, other)
    ]
    found = {
        "GAE": apart(reference.advantages, other.advantages),
        "normalised": apart(reference.normalised, other.normalised),
        "gradient": apart(*flat),
    }
    for name in ("policy_loss", "value_loss", "clipped"):
        wanted, got = getattr(reference, name), getattr(other, name)
        found[name] = abs(got - wanted) / abs(wanted)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("folder", help="where pip put trl 1.12")
    sys.path.insert(0, parser.parse_args().folder)
    import trl

    if not trl.__version__.startswith("1.12."):
        print(f"found trl {trl.__version__} instead of 1.12: see {__file__}", file=sys.stderr)
        return 2
    disable_progress_bar()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        problem = make_problem(Path(folder))
        own = ours(problem)
        found = gaps(theirs(problem, sample_variance=False), own)
        as_it_is = gaps(theirs(problem, sample_variance=True), own)
    n = QUESTIONS * SAMPLES * TOKENS
    print(f"policy loss {own.policy_loss:.6f}, value loss {own.value_loss:.6f}, ", end="")
    print(f"clipped {own.clipped:.2f} of {n} tokens\n")
    print(f"{'relative error':<16} {'variance / n':>14} {'TRL: / (n - 1)':>15}")
    for name, value in found.items():
        print(f"{name:<16} {value:>14.1e} {as_it_is[name]:>15.1e}")
    print(f"\nsqrt(1 - 1/n) is 1 - {1 - math.sqrt(1 - 1 / n):.1e}")
    return 0 if max(found.values()) <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
