"""A recipe in the settings of TRL's GRPOTrainer; see `dro_rl.trl_grpo`."""

from __future__ import annotations

import torch
from trl import GRPOConfig

from dro_rl.recipe import Recipe
from dro_rl.sections.algorithm import TrlGrpoAlgorithm


def grpo_config(recipe: Recipe, steps: int, size: int, scratch: str) -> GRPOConfig:
    """TRL's settings for `steps` optimiser steps of iterations of `size` questions."""
    algorithm, training = recipe.algorithm, recipe.training
    section = recipe.causal_lm("selector")
    assert isinstance(algorithm, TrlGrpoAlgorithm)
    batch = training.batch_size
    fit = max(1, training.tokens_per_microbatch // (algorithm.samples * section.max_length))
    micro = max(d for d in range(1, min(fit, batch) + 1) if batch % d == 0)
    args = GRPOConfig(
        output_dir=scratch,
        seed=training.seed,
        max_steps=steps,
        per_device_train_batch_size=micro * algorithm.samples,
        gradient_accumulation_steps=batch // micro,
        steps_per_generation=size // micro,
        num_generations=algorithm.samples,
        num_iterations=training.epochs,
        max_completion_length=section.max_new_tokens,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        loss_type="grpo" if algorithm.scale == "std" else "dr_grpo",
        scale_rewards="group" if algorithm.scale == "std" else "none",
        epsilon=algorithm.clip,
        beta=algorithm.kl,
        use_bias_correction_kl=False,
        max_grad_norm=training.max_grad_norm,
        shuffle_dataset=False,
        bf16=section.dtype == "bfloat16",
        gradient_checkpointing=section.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=False,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    args._n_gpu = min(args.n_gpu, 1)  # TRL refuses to see several: the engines have the others
    return args
