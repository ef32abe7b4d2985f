"""Weights as numpy arrays: what travels from a learner to the engines.

Ray hands numpy arrays over without a copy and torch tensors with one. numpy has no bfloat16, so
such a tensor travels as the int16 view of its bits, under its name and a mark.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

_BFLOAT16 = ":bf16"


def pack(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, np.ndarray]:
    """Named tensors on any device to named arrays of the same shapes and bits.

    One tensor at a time, so that a generator of them needs no second model's room. Arrays may
    share memory with CPU tensors: pack, send, then train on.
    """
    packed: dict[str, np.ndarray] = {}
    for name, tensor in tensors:
        tensor = tensor.detach().cpu().contiguous()
        if tensor.dtype == torch.bfloat16:
            packed[name + _BFLOAT16] = tensor.view(torch.int16).numpy()
        else:
            packed[name] = tensor.numpy()
    return packed


def unpack(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """What `pack` made, back to named CPU tensors that own their memory.

    They are copies: arrays from Ray's object store are read-only and live as long as it says.
    """
    tensors: dict[str, Tensor] = {}
    for name, array in arrays.items():
        tensor = torch.from_numpy(array.copy())
        if name.endswith(_BFLOAT16):
            tensors[name.removesuffix(_BFLOAT16)] = tensor.view(torch.bfloat16)
        else:
            tensors[name] = tensor
    return tensors
