"""The packed forward under FSDP2: two processes, each with half of every weight."""

import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch.distributed import destroy_process_group, init_process_group
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import LlamaConfig, LlamaForCausalLM

from dro_rl.policy.likelihood import Completion, Likelihood

CONFIG = LlamaConfig(
    vocab_size=300,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=128,
    initializer_range=0.2,
)


def make_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(CONFIG)


def completions(rank: int) -> list[Completion]:
    """Each rank has questions of its own, of different lengths."""
    prompt = tuple(range(10 + rank, 50 + 20 * rank))
    return [Completion(prompt, (5 + i, 6 + rank, 2)) for i in range(4)]


def loss(likelihood: Likelihood, rank: int) -> torch.Tensor:
    return -(torch.tensor([0.1, 0.2, 0.3, 0.4]) * likelihood.of(completions(rank))).sum()


def run(rank: int, port: int, checkpointing: bool, chunk: int, folder: Path) -> None:
    from dro_rl.policy import likelihood as module

    module._CHUNK = chunk
    init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    model = make_model().train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    likelihood = Likelihood(model)
    value = loss(likelihood, rank)
    value.backward()
    grads = {n: p.grad.full_tensor() for n, p in model.named_parameters()}
    torch.save((value.detach(), grads), folder / f"{rank}.pt")
    destroy_process_group()


@pytest.mark.parametrize(
    ("checkpointing", "chunk"), [(False, 2**24), (True, 300 * 4)], ids=["plain", "saving-memory"]
)
def test_sharded_loss_and_gradient_are_those_of_one_process(tmp_path, checkpointing, chunk):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(run, (port, checkpointing, chunk, tmp_path), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    model = make_model()
    wanted = [loss(Likelihood(model, "dense"), rank) for rank in (0, 1)]
    (sum(wanted) / 2).backward()  # FSDP averages over ranks
    for (value, _), want in zip(found, wanted, strict=True):
        assert value.item() == pytest.approx(want.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        grad = found[0][1][name]
        assert (grad - parameter.grad).norm() < 1e-5 * parameter.grad.norm(), name
