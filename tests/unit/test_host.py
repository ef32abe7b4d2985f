"""Whether a worker's thread moves, and what its process is doing."""

import threading
import time

import pytest
import ray

from dro_rl.cluster.host import Host, Pulse

pytestmark = pytest.mark.unit


class Worker:
    """Works in one way or another until it is told to stop."""

    def __init__(self) -> None:
        self.stop = threading.Event()

    def compute_nothing(self) -> None:
        pass

    def compute(self) -> None:
        while not self.stop.is_set():
            pass

    def move(self) -> None:
        while not self.stop.is_set():
            time.sleep(0.001)

    def wait(self) -> None:
        self.stop.wait()


@pytest.fixture
def host():
    hosting = Host()
    hosting.make(Worker, ())
    hosting.call("compute_nothing", ())  # the first call imports Ray
    yield hosting
    hosting.worker.stop.set()


def pulse_after(host: Host, method: str, seconds: float) -> Pulse:
    """What the host says of a call that has run for a while."""
    thread = threading.Thread(target=host.call, args=(method, ()), daemon=True)
    thread.start()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        host.pulse()
        time.sleep(0.02)
    return host.pulse()


@pytest.mark.parametrize("method", ["compute", "move"])
def test_a_call_that_uses_the_processor_or_moves_on_in_its_code_moves(host, method):
    pulse = pulse_after(host, method, 0.5)
    assert pulse.running >= 0.5 and pulse.still < 0.3


def test_a_call_that_waits_does_not(host):
    pulse = pulse_after(host, "wait", 0.5)
    assert 0.3 < pulse.still <= pulse.running


def test_waiting_for_an_argument_is_not_taken_for_a_hang(host, monkeypatch):
    arrives = threading.Event()
    monkeypatch.setattr(ray, "get", lambda ref: arrives.wait(10))
    host.worker.take = lambda argument: argument
    args = ("take", (ray.ObjectRef.from_random(),))
    thread = threading.Thread(target=host.call, args=args, daemon=True)
    thread.start()
    time.sleep(0.2)
    pulse = host.pulse()
    arrives.set()
    thread.join()
    assert pulse == Pulse(0.0, 0.0)


def test_between_calls_nothing_runs(host):
    host.worker.stop.set()
    host.call("wait", ())
    assert host.pulse() == Pulse(0.0, 0.0)


def test_the_stack_names_the_call(host):
    threading.Thread(target=host.call, args=("wait", ()), daemon=True).start()
    time.sleep(0.05)
    assert "in wait" in host.stack() and "in call" in host.stack()


def test_what_is_left_can_be_told_apart_from_what_went_wrong(host):
    host.worker.give = lambda: 7
    assert host.leave("give") == (None, 7)
    host.worker.give = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        host.leave("give")
