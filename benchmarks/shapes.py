"""Models of given sizes, the plain forward pass that ours is measured against, and the
floating-point operations of both."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, Qwen2Config

from dro_rl.policy.completion import Completion
from dro_rl.policy.trie import pack


def _llama(
    hidden: int, layers: int, intermediate: int, heads: int, kv_heads: int | None = None
) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=2000,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads or heads,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )


SIZES: dict[str, PretrainedConfig] = {
    "tiny": _llama(64, 1, 128, 2),
    "5M": _llama(256, 6, 688, 4),
    "20M": _llama(512, 6, 1376, 8, 2),
    "50M": _llama(640, 10, 1728, 10),
    "100M": _llama(768, 14, 2048, 12),
    "0.5B": Qwen2Config(  # the shape of Qwen2-0.5B
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    ),
}


def device_of(gpu: bool) -> str:
    """Where to measure; exits where `--gpu` was asked for in vain."""
    if gpu and not torch.cuda.is_available():
        sys.exit("--gpu: PyTorch sees no NVIDIA GPU on this machine; without --gpu the CPU is used")
    return "cuda" if gpu else "cpu"


def make_model(size: str, device: str) -> Any:
    """A random model in float32 that trains; the same one at every call."""
    torch.manual_seed(0)
    config = deepcopy(SIZES[size])  # a model writes into its own
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    return model.to(device).train()


def autocast(device: str) -> torch.autocast:
    """bfloat16 on a GPU, float32 elsewhere."""
    return torch.autocast(device, torch.bfloat16, enabled=device == "cuda")


def random_ids(draw: random.Random, n: int) -> tuple[int, ...]:
    """n tokens that every vocabulary has."""
    return tuple(draw.randrange(3, 2000) for _ in range(n))


def padded(model: Any, completions: Sequence[Completion], *, full_logits: bool = False) -> Tensor:
    """log p of completions [nats] as a plain loop on transformers has it: (B,).

    A row a completion, padded on the right, where causal attention doesn't look; logits from where
    the first completion is predicted, or of all tokens.
    """
    device = model.device
    rows = [torch.tensor([*c.prompt_ids, *c.token_ids]) for c in completions]
    ids = pad_sequence(rows, batch_first=True).to(device)
    start = 0 if full_logits else min(len(c.prompt_ids) for c in completions) - 1
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=ids.shape[1] - start).logits
    logps = logits[:, :-1].float().log_softmax(-1)
    chosen = logps.gather(2, ids[:, start + 1 :, None])[..., 0]
    at = torch.arange(start + 1, ids.shape[1], device=device)
    first = torch.tensor([len(c.prompt_ids) for c in completions], device=device)[:, None]
    end = torch.tensor([len(c) for c in completions], device=device)[:, None]
    return torch.where((at >= first) & (at < end), chosen, 0.0).sum(1)


def padded_flops(
    config: PretrainedConfig, completions: Sequence[Completion], *, full_logits: bool = False
) -> float:
    """Of a forward pass of `padded`."""
    width, rows = max(map(len, completions)), len(completions)
    start = 0 if full_logits else min(len(c.prompt_ids) for c in completions) - 1
    kept = width - start
    return _flops(config, rows * width, rows * width * (width + 1) / 2, rows * kept)


def packed_flops(config: PretrainedConfig, completions: Sequence[Completion]) -> float:
    """Of a forward pass in which everything that completions share is computed once."""
    trie = pack([c.read for c in completions])
    reads = np.concatenate(
        [p[len(c.prompt_ids) - 1 :] for c, p in zip(completions, trie.paths, strict=True)]
    )
    return _flops(config, len(trie), float((trie.depths_N + 1).sum()), len(np.unique(reads)))


FORMULA = "2 W tokens + 4 layers h pairs + 2 h V reads"


def _flops(config: PretrainedConfig, tokens: int, pairs: float, reads: int) -> float:
    """`FORMULA`, a multiplication and an addition each counted.

    W: weights of the layers' matrices; h: hidden size; pairs: (query, key) that attention may look
    at; V: vocabulary; reads: places whose logits are made. A backward pass takes twice as much.
    """
    h, layers = config.hidden_size, config.num_hidden_layers
    share = config.num_key_value_heads / config.num_attention_heads
    weights = layers * ((2 + 2 * share) * h**2 + 3 * h * config.intermediate_size)
    return 2 * weights * tokens + 4 * layers * h * pairs + 2 * h * config.vocab_size * reads
