"""A model in parts on several processes: FSDP2, by torch.distributed.

Every parameter is cut along its rows; a layer's parameters are whole only while it computes. Each
rank's backward pass adds to the gradient: it is summed over ranks, not averaged.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def shard(model: Any, *, bfloat16: bool) -> None:
    """Cut a model among all ranks, in place; all have to do it, to equal models.

    Args:
        model: on the CPU; its parts go to the device that the process computes on.
        bfloat16: forward and backward run in it; weights and the sums of gradients keep theirs.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    device = "cuda" if torch.cuda.is_available() else "cpu"
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    precision = MixedPrecisionPolicy()
    if bfloat16:
        precision = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32)
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    layers = [m for m in plain.modules() if type(m).__name__ in (plain._no_split_modules or ())]
    for module in (*layers, model):
        sharded = fully_shard(module, mesh=mesh, mp_policy=precision)
        assert isinstance(sharded, FSDPModule)
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)  # gloo scales no sums


def free(model: Any) -> None:
    """Let go of what the last forward pass left whole, which an optimiser step would not change."""
    if hasattr(model, "reshard"):
        model.reshard()


def whole(tensor: Tensor) -> Tensor:
    """All rows of a tensor. All ranks have to ask, in the same order."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own(tensor: Tensor) -> Tensor:
    """This rank's rows of a tensor, sharing its memory; of one that is not cut, all."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def first_row(tensor: Tensor, rank: int, size: int) -> int:
    """Where this rank's rows begin; 0 for a tensor that is not cut."""
    if not isinstance(tensor, DTensor):
        return 0
    rows = len(tensor)
    return min(rank * -(-rows // size), rows)  # as torch.chunk has it


def uncut(parameters: Iterable[Tensor]) -> list[Tensor]:
    """Those whose gradient nobody has summed over ranks."""
    return [p for p in parameters if not isinstance(p, DTensor)]


def clip(parameters: Iterable[Tensor], most: float) -> float:
    """Scale the gradients, where that is needed, to a global norm of `most`; the norm before.

    Cut gradients and others may be mixed: an operator takes one kind at a time.
    """
    every = [p for p in parameters if p.grad is not None]
    kinds = [k for k in ([p for p in every if isinstance(p, DTensor)], uncut(every)) if k]
    if not kinds:
        return 0.0
    grads = [[p.grad for p in kind if p.grad is not None] for kind in kinds]
    norms = [whole(nn.utils.get_total_norm(some)) for some in grads]
    norm = norms[0] if len(norms) == 1 else torch.stack(norms).norm()
    for kind in kinds:
        nn.utils.clip_grads_with_norm_(kind, most, norm)
    return norm.item()
