"""What other people's libraries are told before they are imported."""

from __future__ import annotations

import os


def quiet_libraries() -> None:
    """Keep progress bars and notices of libraries out of this process's output."""
    for name, value in (
        ("TOKENIZERS_PARALLELISM", "false"),
        ("TRANSFORMERS_VERBOSITY", "error"),
        ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
        ("HF_DATASETS_DISABLE_PROGRESS_BARS", "1"),
        ("DISABLE_SAFETENSORS_CONVERSION", "1"),  # else a hub's service is asked to convert pickles
        ("RAY_USAGE_STATS_ENABLED", "0"),
        ("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0"),
    ):
        os.environ.setdefault(name, value)
