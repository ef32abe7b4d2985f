"""A service of ours through Ray Serve, from its start to Ctrl-C."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable

from ray import serve

from dro_rl.errors import UserError
from dro_rl.listening import SIGNALS, address_of, listen, until_a_signal, warn_if_open

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


def serve_until_a_signal(
    app: serve.Application,
    name: str,
    host: str,
    port: int,
    told: str,
    token: str | None,
    say: Callable[[str], object],
    timeout: float | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM; the service ends then, also on a cluster that goes on.

    Args:
        told: said once it answers, with {address} for where.
        token: what requests have to bring, if anything.
        timeout: after which Ray gives up a request [s], its time before a replica takes it
            included; by default never.
    """
    with until_a_signal():
        try:
            serve.start(
                proxy_location="HeadOnly",
                http_options={"host": host, "port": port, "request_timeout_s": timeout},
                logging_config=QUIET,
            )
            serve.run(app, name=name, route_prefix="/")
            say(told.replace("{address}", address_of(host, port)))
            warn_if_open(host, token, say)
            while True:
                time.sleep(1)
        finally:
            for number in SIGNALS:  # a further one would leave the service up
                signal.signal(number, signal.SIG_IGN)
            serve.shutdown()
