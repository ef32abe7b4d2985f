"""A service of ours through Ray Serve, from its start to Ctrl-C."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ray import serve

from dro_rl.errors import UserError
from dro_rl.listening import address_of, listen, warn_if_open

QUIET = {"log_level": "WARNING", "enable_access_log": False}
"""Logging of a deployment."""


def check_address(host: str, port: int) -> None:
    """Refuse an address that is taken: Ray Serve itself says it in the log of another process.

    Raises:
        UserError: it cannot be taken.
    """
    listen(host, port).close()


def prepare() -> None:
    """Before Ray starts: Ray Serve gives up on its HTTP process after 5 s, in which a busy machine
    cannot start one."""
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
    logging.getLogger("ray.serve").setLevel(logging.WARNING)


def check_nothing_is_served() -> None:
    """A cluster has one Ray Serve, with one address: what another started stays as it is.

    Raises:
        UserError: it runs one already.
    """
    status = serve.status()
    if status.proxies or status.applications:
        names = ", ".join(status.applications) or "nothing at the moment"
        raise UserError(
            f"cluster.address: Ray Serve runs on this cluster already ({names}): end it there "
            "(`serve shutdown`), or serve from another cluster"
        )


@contextmanager
def running(
    app: serve.Application, name: str, host: str, port: int, timeout: float | None = None
) -> Iterator[str]:
    """The address of a service, which ends with the block, also on a cluster that goes on.

    Args:
        timeout: after which Ray gives up a request [s], its time before a replica takes it
            included; by default never.
    """
    try:
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": host, "port": port, "request_timeout_s": timeout},
            logging_config=QUIET,
        )
        serve.run(app, name=name, route_prefix="/")
        yield address_of(host, port)
    finally:
        serve.shutdown()


def wait_for_the_end(told: str, host: str, token: str | None, say: Callable[[str], object]) -> None:
    """Say what is served, and return when a signal ends it."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    say(told)
    warn_if_open(host, token, say)
    while not stop.wait(1):
        pass
