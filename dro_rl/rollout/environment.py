"""The environment variables that an engine's process needs before it imports torch or vLLM."""

from __future__ import annotations

import os
from pathlib import Path

from dro_rl.sections.process import RolloutSection

_NVIDIA_DEVICES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg")  # the last one is WSL's


def engine_environment(rollout: RolloutSection, threads: int) -> dict[str, str]:
    """Variables for a process that hosts an engine, on the machine that asks.

    Ask where the engine will run, since a cluster's head may lack the GPU that its workers have;
    RolloutWorker does so by itself. Imports no torch: a GPU is there if NVIDIA's device files are
    and CUDA_VISIBLE_DEVICES does not hide them.

    The engine runs inside the process that asks for it (no multiprocessing), so that weights
    are handed over without a copy and the process's seed decides the samples. With
    `tensor_parallel` its model is in processes of its own, which inherit these variables.

    Args:
        rollout: `cpu_cache_gib` is the key-value cache without a GPU.
        threads: CPU threads of the process.
    """
    variables = {
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
        "VLLM_NO_USAGE_STATS": "1",
        # The second model runner, vLLM's default on a GPU, takes other logits processors and does
        # not draw from torch's generator, on which repeatable rollouts rest.
        "VLLM_USE_V2_MODEL_RUNNER": "0",
    }
    if not has_gpu():
        # Without the first vLLM asks for nearly all memory; without the second it needs g++.
        variables["VLLM_CPU_KVCACHE_SPACE"] = str(rollout.cpu_cache_gib)
        variables["TORCHDYNAMO_DISABLE"] = "1"
    if rollout.tensor_parallel > 1:
        variables["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"  # a fork would inherit our threads
        if not has_gpu():
            # Else each process wants a NUMA node of its own.
            variables["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    return variables


def has_gpu() -> bool:
    """Whether this process can see an NVIDIA GPU."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1"):
        return False
    return any(Path(device).exists() for device in _NVIDIA_DEVICES)
