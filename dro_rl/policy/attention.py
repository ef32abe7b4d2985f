"""Attention over a row of packed tries, for models that take their attention from transformers.

`use_trie_attention(model)` puts it in place; the model then attends as before, unless its forward
is given `trie=Packed(...)`. On CUDA the mask is FlexAttention's; elsewhere a few calls of PyTorch's
own attention cover the blocks of the row. Shape suffixes: H heads, N packed tokens, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from dro_rl.policy.trie import Block, Trie

_NAME = "dro_rl_trie"


def unsupported(model: PreTrainedModel) -> str | None:
    """Why a model cannot read packed tries; None if it can.

    Decided from its configuration: every layer must attend to everything before it, by attention
    that transformers lets us replace, and nothing may come after the output embedding.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if kinds:
        return f"it has layers of {', '.join(sorted(kinds)).replace('_', ' ')}"
    if not getattr(model, "_supports_attention_backend", False):
        return "transformers does not let its attention be replaced"
    if getattr(model, "_is_stateful", False):
        return "it has recurrent layers"
    windows = getattr(config, "sliding_window", None) and not getattr(config, "layer_types", None)
    if windows and getattr(config, "use_sliding_window", True):
        return "its attention has a sliding window"
    for name, what in (
        ("attn_logit_softcapping", "its attention is soft-capped"),
        ("final_logit_softcapping", "its logits are soft-capped"),
        ("logit_scale", "its logits are scaled"),
        ("logits_scaling", "its logits are scaled"),
        ("lm_head_multiplier", "its logits are scaled"),
    ):
        if getattr(config, name, None) not in (None, 1, 1.0):
            return what
    if any(name.endswith(".sinks") for name, _ in model.named_parameters()):
        return "its attention has sinks"
    return None


def use_trie_attention(model: PreTrainedModel) -> None:
    """Let the model's forward take `trie=Packed(...)`; without it, nothing changes."""
    AttentionInterface.register(_NAME, _attention)
    AttentionMaskInterface.register(_NAME, sdpa_mask)  # of forwards without a trie
    model.set_attn_implementation(_NAME)


class NotAttended(Exception):
    """A forward over tries in which no layer asked for our attention."""


class Packed:
    """A trie's masks on a device, made once a forward and shared by its layers. `attended` once a
    layer has used them."""

    def __init__(self, trie: Trie, device: torch.device) -> None:
        self.trie, self.device, self.attended = trie, device, False
        self._flex: Any = None
        self._islands: list[_Island] | None = None

    def no_mask(self) -> Tensor:
        """What to give as `attention_mask`: transformers takes a mask of four dimensions for one
        that is ready and makes none of its own, which would be a row by a row."""
        return torch.zeros(1, 1, 1, 1, device=self.device)

    def flex_mask(self) -> Any:
        """FlexAttention's block mask of the whole row."""
        if self._flex is None:
            end_N = torch.from_numpy(self.trie.end_N).to(self.device)

            def sees(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
                return (k <= q) & (q < end_N[k])

            n = len(self.trie)
            make = _block_mask_maker(self.device.type == "cuda")
            self._flex = make(sees, None, None, n, n, device=self.device)
        return self._flex

    def islands(self, dtype: torch.dtype) -> list[_Island]:
        """With masks in the queries' dtype."""
        if self._islands is None:
            self._islands = [
                _Island(self.trie, list(blocks), dtype, self.device)
                for _, blocks in groupby(self.trie.blocks, key=lambda block: block.island)
            ]
        return self._islands


class _Island:
    """A run of tokens of which none sees another's, and its blocks: their masks, and their keys.

    Keys are picked from *segments*, the island cut wherever some block's keys begin or end. Each of
    them gets its gradient at its own size, where one of a slice would be as large as the island,
    and a step of many blocks quadratic.

    Args:
        blocks: its, in order.
    """

    def __init__(
        self, trie: Trie, blocks: Sequence[Block], dtype: torch.dtype, device: torch.device
    ) -> None:
        first = blocks[0].start
        keys = [np.concatenate([b.ancestors, np.arange(b.start, b.stop)]) for b in blocks]
        runs = [_runs(k - first) for k in keys]
        cuts = sorted({cut for some in runs for run in some for cut in run})
        number = {cut: i for i, cut in enumerate(cuts)}
        self.queries = [b.stop - b.start for b in blocks]
        self.segments = np.diff(cuts).tolist()
        self.keys = [[i for a, b in some for i in range(number[a], number[b])] for some in runs]
        self.masks = [
            None if b.causal else _mask(trie, b, k, dtype, device)
            for b, k in zip(blocks, keys, strict=True)
        ]

    def attend(self, q_HND: Tensor, k: Tensor, v: Tensor, scale: float | None) -> list[Tensor]:
        """Every block's output."""
        segments = k.split(self.segments, 2), v.split(self.segments, 2)
        return [
            scaled_dot_product_attention(
                queries,
                *(_joined([some[i] for i in picked]) for some in segments),
                attn_mask=mask,
                is_causal=mask is None,
                scale=scale,
            )
            for queries, picked, mask in zip(
                q_HND.split(self.queries, 2), self.keys, self.masks, strict=True
            )
        ]


def _runs(numbers: np.ndarray) -> list[tuple[int, int]]:
    """Rising numbers as ranges [start, stop) of those that follow each other."""
    ends = np.flatnonzero(np.diff(numbers) != 1)
    starts = numbers[np.concatenate([[0], ends + 1])]
    stops = numbers[np.concatenate([ends, [len(numbers) - 1]])] + 1
    return list(zip(starts.tolist(), stops.tolist(), strict=True))


def _mask(
    trie: Trie, block: Block, keys: np.ndarray, dtype: torch.dtype, device: torch.device
) -> Tensor:
    sees = torch.from_numpy(trie.sees(np.arange(block.start, block.stop), keys))
    mask = torch.zeros(sees.shape, dtype=dtype).masked_fill_(~sees, float("-inf"))
    return mask.to(device)[None, None]


def _joined(segments: list[Tensor]) -> Tensor:
    return torch.cat(segments, 2) if len(segments) > 1 else segments[0]


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    trie: Packed | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    """An attention function of transformers; see `sdpa_attention_forward`."""
    if trie is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
    odd = [n for n in ("sliding_window", "softcap", "s_aux", "position_bias") if others.get(n)]
    if odd or dropout:
        raise RuntimeError(f"attention over packed tries knows no {', '.join(odd) or 'dropout'}")
    trie.attended = True
    if torch.is_autocast_enabled(query.device.type):  # norms and rotations leave float32 behind
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if query.is_cuda:
        out = _compiled_flex()(
            query,
            key,
            value,
            block_mask=trie.flex_mask(),
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
    else:
        out = _by_blocks(query, key, value, trie, scaling)
    return out.transpose(1, 2), None


def _by_blocks(q_HND: Tensor, k: Tensor, v: Tensor, packed: Packed, scale: float | None) -> Tensor:
    groups = q_HND.shape[1] // k.shape[1]
    k, v = repeat_kv(k, groups), repeat_kv(v, groups)
    sizes = packed.trie.islands()
    out: list[Tensor] = []
    for island, q_i, k_i, v_i in zip(
        packed.islands(q_HND.dtype),
        q_HND.split(sizes, 2),
        k.split(sizes, 2),
        v.split(sizes, 2),
        strict=True,
    ):
        out += island.attend(q_i, k_i, v_i, scale)
    return torch.cat(out, 2)


@cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)  # else every new length recompiles


@cache
def _block_mask_maker(compiled: bool) -> Any:
    """Compiled, it makes the mask block by block instead of whole."""
    from torch.nn.attention.flex_attention import create_block_mask

    return torch.compile(create_block_mask, dynamic=True) if compiled else create_block_mask
