"""Memory for what the frozen layers of an encoder make of texts. Imports no torch."""

from __future__ import annotations

import os

_MOST = 4 * 2**30  # bytes: 17,000 texts of 128 tokens take 3.3 GB at d = 384


def room_for_hidden_states() -> float:
    """Bytes that a process on this machine keeps at most, see dro_rl.policy.lower."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(_MOST, machine / 4)
