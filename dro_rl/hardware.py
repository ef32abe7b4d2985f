"""What a process runs on, and how much memory it has taken."""

from __future__ import annotations

import os
import re
import resource
import socket
import sys
import time
from dataclasses import dataclass
from functools import cache

_MEASURED = 512  # edge of the matrices whose product measures a CPU: 0.27 GFLOP

# Dense bfloat16 with float32 sums [FLOP/s], from NVIDIA's data sheets (where those give a figure
# with sparsity, half of it). The first line whose words are all in the device's name counts.
_PEAKS: tuple[tuple[str, float], ...] = (
    ("B200", 2250e12),
    ("H200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("A100", 312e12),
    ("A10", 125e12),
    ("L40S", 362e12),
    ("L4", 121e12),
    ("RTX 4090", 165e12),
)
_OTHERWISE = {"MIG", "Laptop", "D"}  # a slice of the device, or a slower one of the same number


@dataclass(frozen=True, slots=True)
class Device:
    """A device and its peak [FLOP/s], None where it is not known. Equal keys are one device."""

    key: str
    name: str
    peak: float | None


@dataclass(frozen=True, slots=True)
class Memory:
    """A process and the most memory it has held since its start [GiB]: resident, and what torch
    had allocated on the GPU, None without one."""

    process: str
    resident: float
    gpu: float | None


def this_process() -> str:
    """A name that no other process of the cluster has."""
    return f"{socket.gethostname()}/{os.getpid()}"


def memory() -> Memory:
    """Of this process."""
    import torch  # recipes are checked without

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    resident = peak / (2**30 if sys.platform == "darwin" else 2**20)
    gpu = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_initialized() else None
    return Memory(this_process(), resident, gpu)


@cache
def device() -> Device:
    """Where this process's models are. A CPU's peak is measured once, and is this process's: of
    its threads, beside whatever else runs."""
    import torch

    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        return Device(str(torch.cuda.get_device_properties(0).uuid), name, gpu_peak(name))
    return Device(this_process(), "cpu", _cpu_peak())


def gpu_peak(name: str) -> float | None:
    """Peak of a GPU by the name that CUDA gives it [FLOP/s]; None for one not in the table."""
    words = set(re.split(r"[\s-]+", name))
    if words & _OTHERWISE:
        return None
    return next((peak for known, peak in _PEAKS if set(known.split()) <= words), None)


def _cpu_peak() -> float:
    """The fastest of six float32 matrix products [FLOP/s]: some 30 ms."""
    import torch

    a, times = torch.ones(_MEASURED, _MEASURED), []
    with torch.no_grad():
        for _ in range(6):
            start = time.perf_counter()
            torch.mm(a, a)
            times.append(time.perf_counter() - start)
    return 2 * _MEASURED**3 / min(times)
