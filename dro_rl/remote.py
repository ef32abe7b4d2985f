"""Asks servers that a recipe names by URL: JSON both ways, time-outs, retries, limits."""

from __future__ import annotations

import os
import time
from typing import Any

import httpx

from dro_rl.errors import UserError

_LARGEST_REPLY = 256 * 2**20  # bytes: what a server sends must not fill the memory
_WORTH_ANOTHER_TRY = (408, 429, 500, 502, 503, 504)


def check_url(url: str, setting: str) -> str:
    """The URL, if it is one of http or https.

    Raises:
        UserError: names the setting.
    """
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise UserError(f"{setting}: {url!r} is not a URL ({error})") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise UserError(f"{setting}: {url!r} must begin with http:// or https:// and name a host")
    return url


def post_json(
    url: str,
    body: Any,
    *,
    setting: str,
    timeout: float = 60,
    attempts: int = 4,
    token_variable: str = "DRO_RL_TOKEN",
) -> Any:
    """The reply to a JSON request, decoded.

    A server that cannot be reached, takes longer than `timeout` [s] or answers that it is busy or
    broken is asked again, up to `attempts` times in all, after 0.5, 1, 2, ... s. What the
    environment has under `token_variable` is sent as bearer token.

    Raises:
        UserError: no usable reply came; names the setting, the URL and the last failure.
    """
    check_url(url, setting)
    token = os.environ.get(token_variable)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    failure = ""
    for attempt in range(attempts):
        if attempt:
            time.sleep(0.5 * 2 ** (attempt - 1))
        try:
            return _post_once(url, body, headers, timeout)
        except _Refused as error:
            raise UserError(f"{setting}: {url} {error}") from error
        except (httpx.HTTPError, _Failed) as error:
            failure = str(error) or type(error).__name__
            if isinstance(error, httpx.TimeoutException):
                failure = f"no reply within {timeout:g} s"
    raise UserError(
        f"{setting}: {url} gave no usable reply in {attempts} tries: {failure}; check that the "
        "server runs and that the address is right"
    )


class _Failed(Exception):
    """May go better another time."""


class _Refused(Exception):
    """Will not go better another time."""


def _post_once(url: str, body: Any, headers: dict[str, str], timeout: float) -> Any:
    deadline = time.monotonic() + timeout
    chunks, size = list[bytes](), 0
    with httpx.stream("POST", url, json=body, headers=headers, timeout=timeout) as reply:
        for chunk in reply.iter_bytes():
            size += len(chunk)
            if size > _LARGEST_REPLY:
                raise _Refused(f"sends more than {_LARGEST_REPLY // 2**20} MiB: ask for less")
            if time.monotonic() > deadline:  # httpx's own limit is on each read
                raise httpx.ReadTimeout("")
            chunks.append(chunk)
    content = b"".join(chunks)
    if reply.status_code in _WORTH_ANOTHER_TRY:
        raise _Failed(f"it answered {reply.status_code}: {_beginning(content)}")
    if reply.status_code != 200:
        raise _Refused(f"answered {reply.status_code}: {_beginning(content)}")
    try:
        return httpx.Response(200, content=content).json()
    except ValueError as error:
        raise _Failed(f"its reply is not JSON: {_beginning(content)}") from error


def _beginning(content: bytes) -> str:
    text = " ".join(content[:400].decode(errors="replace").split())
    return text[:200] or "(nothing)"
