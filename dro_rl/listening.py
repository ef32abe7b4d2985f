"""What all our servers have in common: where they listen, and whom they answer."""

from __future__ import annotations

import hmac
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fastapi import FastAPI, HTTPException, Request

from dro_rl.errors import UserError
from dro_rl.remote import is_loopback

SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""What ends a server."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at an address; port 0 takes a free one.

    Raises:
        UserError: the address cannot be taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen()
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"cannot listen at {host}:{port}: {reason}: choose another --port or --host"
        ) from error
    return listening


@contextmanager
def until_a_signal() -> Iterator[None]:
    """SIGINT (Ctrl-C) and SIGTERM end the block, and that is how a server is meant to end: what
    comes after the block goes on, and the command's exit code is 0."""
    before = {n: signal.signal(n, signal.default_int_handler) for n in SIGNALS}
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def answer_until_a_signal(app: FastAPI, listening: socket.socket, connections: int) -> None:
    """Serve from this process; requests that are at work when a signal comes are still answered.

    Args:
        connections: at once; a further one is answered 503.
    """
    import uvicorn  # who only asks a server needs none

    config = uvicorn.Config(app, log_level="warning", limit_concurrency=connections)
    with until_a_signal():  # uvicorn closes first, and then raises the signal that it caught again
        uvicorn.Server(config).run(sockets=[listening])


def address_of(host: str, port: int) -> str:
    """The URL of what listens there."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def brings_token(authorization: str | None, token: str | None) -> bool:
    """Whether a request with that header may be answered: where a token is asked for, it has to
    bring it as bearer token."""
    given = (authorization or "").encode()
    return token is None or hmac.compare_digest(given, f"Bearer {token}".encode())


def warn_if_open(host: str, token: str | None, say: Callable[[str], object]) -> None:
    """Say so where other machines reach a server that asks nobody for a token."""
    if token is None and not is_loopback(host):
        say(f"warning: {host} is reached from other machines: set DRO_RL_TOKEN to ask for a token")


async def read_body(request: Request, token: str | None, largest: int) -> bytes:
    """A request's body; nothing of it is read before its token was found good.

    Args:
        largest: in bytes, a multiple of a MiB.
    Raises:
        HTTPException: 401 without the token, 413 for a body that is too large.
    """
    if not brings_token(request.headers.get("authorization"), token):
        raise HTTPException(401, "send the server's DRO_RL_TOKEN as bearer token")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > largest:
            raise HTTPException(413, f"send at most {largest // 2**20} MiB at once")
    return bytes(body)
