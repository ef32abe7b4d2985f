"""What a learner needs to continue, beside its policy: a folder with a safetensors file a rank.

Each rank writes its own rows of every tensor, and reads the rows that it now has from whichever
files hold them: a state that n ranks wrote is one that any number can read. What is not a tensor
is JSON in the files' headers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dro_rl.errors import UserError
from dro_rl.policy.sharding import first_row, own
from dro_rl.ranks import Ranks

_MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW


def write(
    folder: Path,
    ranks: Ranks,
    trainable: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    facts: Mapping[str, Any],
) -> None:
    """Write this rank's file; all ranks write to the same folder, which holds nothing else.

    Args:
        facts: plain values, the same on all ranks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"rng": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["cuda_rng"] = torch.cuda.get_rng_state()
    shapes, starts, steps = {}, {}, {}
    for name, parameter in trainable.items():
        shapes[name] = list(parameter.shape)
        starts[name] = first_row(parameter, ranks.rank, ranks.size)
        state = optimizer.state.get(parameter, {})  # empty before the first step
        if state:
            steps[name] = state["step"].item()
        kept = {"trainable": parameter, **{k: state[k] for k in _MOMENTS if state}}
        if ranks.rank == 0 or own(parameter) is not parameter:  # one that is not cut: once
            for kind, tensor in kept.items():
                tensors[f"{kind}/{name}"] = own(tensor).detach().cpu().contiguous()
    about = {"shapes": shapes, "starts": starts, "steps": steps, **facts}
    save_file(tensors, folder / _name(ranks.rank, ranks.size), {"about": json.dumps(about)})


def read(
    folder: Path, ranks: Ranks, trainable: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """Take from what `write` wrote all but the facts, which are returned.

    Raises:
        UserError: a file is missing or torn, or of another model.
    """
    with ExitStack() as stack:
        try:
            files = [stack.enter_context(safe_open(p, "pt")) for p in _files(folder)]
            facts = [json.loads(f.metadata()["about"]) for f in files]
            optimizer.state.clear()
            for name, parameter in trainable.items():
                _read_one(name, parameter, optimizer, files, facts, ranks)
            _restore_randomness(files[min(ranks.rank, len(files) - 1)])
        except (
            OSError,
            LookupError,
            TypeError,
            ValueError,
            RuntimeError,
            SafetensorError,
        ) as error:
            raise UserError(
                f"{folder}: cannot be resumed from ({error}); resume an earlier iteration's "
                "folder or start a new run"
            ) from error
    return facts[0]


def _read_one(
    name: str,
    parameter: Tensor,
    optimizer: torch.optim.Optimizer,
    files: list[Any],
    facts: list[dict[str, Any]],
    ranks: Ranks,
) -> None:
    held_shape, shape = facts[0]["shapes"][name], list(parameter.shape)
    if held_shape != shape:
        raise ValueError(f"{name} has the shape {held_shape}, and the model's is {shape}")
    start = first_row(parameter, ranks.rank, ranks.size)
    mine = own(parameter).detach()

    def rows(kind: str) -> Tensor:
        """This rank's, from all files that have some of them."""
        found = torch.empty_like(mine)
        missing = len(mine)
        for file, about in zip(files, facts, strict=True):
            if f"{kind}/{name}" not in file.keys():  # noqa: SIM118, it is no dictionary
                continue
            held = file.get_slice(f"{kind}/{name}")
            first, count = about["starts"][name], held.get_shape()[0]
            begin, end = max(start, first), min(start + len(mine), first + count)
            if begin < end:
                found[begin - start : end - start] = held[begin - first : end - first]
                missing -= end - begin
        if missing:
            raise ValueError(f"{missing} rows of {kind}/{name} are missing")
        return found

    mine.copy_(rows("trainable"))
    step = facts[0]["steps"].get(name)
    if step is None:
        return
    state: dict[str, Any] = {"step": torch.tensor(step, device=mine.device)}
    for kind in _MOMENTS:
        state[kind] = torch.zeros_like(parameter.detach())
        own(state[kind]).copy_(rows(kind))
    optimizer.state[parameter] = state  # type: ignore[index]


def _restore_randomness(file: Any) -> None:
    torch.set_rng_state(file.get_tensor("rng"))
    if torch.cuda.is_available() and "cuda_rng" in file.keys():  # noqa: SIM118
        torch.cuda.set_rng_state(file.get_tensor("cuda_rng"))


def _name(rank: int, size: int) -> str:
    return f"rank-{rank:04d}-of-{size:04d}.safetensors"


def _files(folder: Path) -> list[Path]:
    """All ranks', in order.

    Raises:
        OSError: not all are there.
    """
    found = sorted(folder.glob("rank-*-of-*.safetensors"))
    size = int(found[0].stem.rpartition("-")[2]) if found else 1
    wanted = [folder / _name(rank, size) for rank in range(size)]
    if found != wanted:
        raise OSError(f"it should hold {', '.join(p.name for p in wanted)}")
    return wanted
