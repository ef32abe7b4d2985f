"""Marks each test by its folder, so that `pytest -m unit` and `pytest tests/unit` agree; and spares
Python searches for garbage."""

import atexit
import gc
import signal
from collections.abc import Generator
from pathlib import Path

import pytest

KINDS = ("unit", "integration", "e2e")

# A shell has what it starts in the background ignore Ctrl-C, and all that this starts in turn.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Imports leave a million objects that stay, and hardly any garbage: of collecting the unit
    tests, searching them again and again took a quarter of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()  # nor are they searched while tests run
        atexit.register(gc.unfreeze)  # extensions complain of what outlives Python
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = item.path.relative_to(Path(__file__).parent).parts[0]
        if folder in KINDS:
            item.add_marker(folder)
