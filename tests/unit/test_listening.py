"""A server that answers until it is told to end."""

from __future__ import annotations

import os
import signal
import threading
import time

import httpx
import pytest
from fastapi import FastAPI

from dro_rl.listening import address_of, answer_until_a_signal, listen, until_a_signal

pytestmark = pytest.mark.unit

SIGNALS = pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"]
)


@SIGNALS
def test_what_was_asked_before_the_signal_is_answered_and_the_command_goes_on(number):
    app = FastAPI()
    asked = threading.Event()

    @app.get("/slow")
    def slow() -> str:
        asked.set()
        time.sleep(0.3)
        return "done"

    listening = listen("127.0.0.1", 0)
    address = address_of("127.0.0.1", listening.getsockname()[1])
    replies: list[str] = []
    caller = threading.Thread(
        target=lambda: replies.append(httpx.get(f"{address}/slow", timeout=20).json())
    )

    def tell() -> None:
        asked.wait(20)
        os.kill(os.getpid(), number)

    teller = threading.Thread(target=tell)
    caller.start()
    teller.start()
    before = signal.getsignal(number)
    answer_until_a_signal(app, listening, connections=4)
    caller.join(20)
    teller.join(20)
    assert replies == ["done"]
    assert signal.getsignal(number) is before


@SIGNALS
def test_what_closes_a_service_runs_whole(number):
    closed = []
    with until_a_signal():
        try:
            os.kill(os.getpid(), number)
            time.sleep(20)
        finally:
            closed.append(True)
    assert closed


def test_a_servers_own_error_is_not_taken_for_a_signal():
    with pytest.raises(LookupError), until_a_signal():
        raise LookupError("a fault of ours")
