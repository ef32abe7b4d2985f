"""A block that is ended by a signal, or by a disk that takes no more."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from dro_rl.durable import CannotWrite
from dro_rl.ending import says_how_to_go_on
from dro_rl.errors import UserError

pytestmark = pytest.mark.unit

BLOCK = """
import time
from pathlib import Path
from dro_rl.at_work import at_work
from dro_rl.ending import says_how_to_go_on
with at_work(Path({run!r}), print):
    try:
        with says_how_to_go_on(lambda: "Iteration 3 is safe"):
            print("ready", flush=True)
            time.sleep(60)
    finally:
        print("closed", flush=True)
        time.sleep({closing})
"""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "Ctrl-C"]
)
@pytest.mark.parametrize("closing", [0, 60], ids=["orderly", "a cluster that does not close"])
def test_a_signal_ends_the_block_within_seconds(tmp_path, number, code, closing):
    process = subprocess.Popen(
        [sys.executable, "-c", BLOCK.format(run=str(tmp_path / "run"), closing=closing)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    start = time.monotonic()
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert time.monotonic() - start < 3
    assert process.returncode == code and out == "closed\n"
    assert err == f"\nstopped by {number.name}. Iteration 3 is safe\n"
    assert not (tmp_path / "run").exists()  # nobody has to wait for who was at work there


LEFT = """
import time
from contextlib import suppress
from dro_rl.ending import at_any_end, says_how_to_go_on

def do(name):
    print(name, flush=True)

def fail():
    do("fails")
    raise OSError

def hang():
    do("hangs")
    time.sleep(60)

with suppress(OSError), at_any_end(fail):
    do("an orderly end")
with (
    at_any_end(lambda: do("never")),
    at_any_end(hang),
    at_any_end(lambda: do("outer")),
    at_any_end(fail),
    at_any_end(lambda: do("inner")),
):
    try:
        with says_how_to_go_on(str):
            do("ready")
            time.sleep(60)
    finally:
        time.sleep(60)
"""


def test_what_is_left_is_done_from_the_inside_out_whatever_fails_or_hangs():
    process = subprocess.Popen([sys.executable, "-c", LEFT], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert [process.stdout.readline().strip() for _ in range(3)] == [
        *("an orderly end", "fails", "ready")
    ]
    start = time.monotonic()
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
    assert out.split() == ["inner", "fails", "outer", "hangs"]
    assert process.returncode == 143
    assert time.monotonic() - start < 3


def test_after_the_block_signals_do_what_they_did():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with says_how_to_go_on(str):
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_full_disk_is_told_with_what_is_safe():
    with (
        pytest.raises(UserError, match="^x: cannot be written .full.. Iteration 3 is safe$"),
        says_how_to_go_on(lambda: "Iteration 3 is safe"),
    ):
        raise CannotWrite("x: cannot be written (full)")
