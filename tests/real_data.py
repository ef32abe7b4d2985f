"""Where real questions lie: in the folder DRO_RL_DATA, or shared/data beside the checkout."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REAL = Path(os.environ.get("DRO_RL_DATA", Path(__file__).parents[2] / "shared" / "data"))
needs_real_data = pytest.mark.skipif(
    not REAL.is_dir(), reason=f"no data at {REAL}: set DRO_RL_DATA to the folder that holds it"
)
