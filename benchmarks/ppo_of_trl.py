"""TRL's side of `ppo_parity.py`: one update of its PPOTrainer, on what is given."""

from __future__ import annotations

import tempfile
from contextlib import redirect_stdout
from io import StringIO
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks.ppo_problem import SETTINGS, TOKENS, Problem, Side
from benchmarks.trl_problem import Weights


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
