"""Asks servers that a recipe names by URL: JSON both ways, time-outs, retries, limits."""

from __future__ import annotations

import json
import os
import time
from typing import Any
from urllib.parse import urlsplit

from dro_rl.errors import UserError

_LARGEST_REPLY = 256 * 2**20  # bytes: what a server sends must not fill the memory
_WORTH_ANOTHER_TRY = (408, 429, 500, 502, 503, 504)


def url_problem(url: str) -> str | None:
    """What is wrong with a URL that is to be asked, if anything; never repeats it, for it may hold
    a password."""
    try:
        parsed = urlsplit(url)
        host, _ = parsed.hostname, parsed.port  # which raise where they are no host and no port
    except ValueError:
        return "is not a URL"
    if parsed.scheme not in ("http", "https") or not host:
        return "must begin with http:// or https:// and name a host"
    if "@" in parsed.netloc:
        return "must not hold a user or password: put the token in DRO_RL_TOKEN"
    return None


def check_url(url: str, setting: str) -> str:
    """The URL, if it is one of http or https and holds no password.

    Raises:
        UserError: names the setting.
    """
    problem = url_problem(url)
    if problem:
        shown = "the URL" if "@" in url else repr(url)
        raise UserError(f"{setting}: {shown} {problem}")
    return url


def bearer_token(variable: str = "DRO_RL_TOKEN") -> str | None:
    """What the environment has under that name, without white space around it, if anything.

    Raises:
        UserError: a header cannot carry it; names the variable and not the value.
    """
    token = os.environ.get(variable, "").strip()
    if not (token.isascii() and token.isprintable()):
        raise UserError(
            f"{variable}: holds something else than printable ASCII characters, which is all that "
            "a token may have: set it again"
        )
    return token or None


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
    import httpx  # here because recipes are checked with this module too, and it takes its time

    check_url(url, setting)
    content = _encoded(body, setting)
    headers = {"Content-Type": "application/json"}
    if token := bearer_token(token_variable):
        headers["Authorization"] = f"Bearer {token}"
    failure = ""
    for attempt in range(attempts):
        if attempt:
            time.sleep(0.5 * 2 ** (attempt - 1))
        try:
            return _post_once(url, content, headers, timeout)
        except _Refused as error:
            raise UserError(f"{setting}: {url} {error}") from error
        except httpx.InvalidURL as error:
            raise UserError(f"{setting}: {url!r} is not a URL ({error})") from error
        except (httpx.HTTPError, _Failed) as error:
            failure = str(error) or type(error).__name__
            if isinstance(error, httpx.TimeoutException):
                failure = f"no reply within {timeout:g} s"
    raise UserError(
        f"{setting}: {url} gave no usable reply in {attempts} tries: {failure}; check that the "
        "server runs and that the address is right"
    )


def _encoded(body: Any, setting: str) -> bytes:
    text = json.dumps(body, ensure_ascii=False, allow_nan=False)
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        around = text[max(0, error.start - 40) : error.end + 40]
        raise UserError(
            f"{setting}: cannot be asked about a text with half of a surrogate pair, which is no "
            f"character, near {around!r}: mend that text"
        ) from error


class _Failed(Exception):
    """May go better another time."""


class _Refused(Exception):
    """Will not go better another time."""


def _post_once(url: str, body: bytes, headers: dict[str, str], timeout: float) -> Any:
    import httpx

    deadline = time.monotonic() + timeout
    chunks, size = list[bytes](), 0
    with httpx.stream("POST", url, content=body, headers=headers, timeout=timeout) as reply:
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
        return json.loads(content)
    except (ValueError, RecursionError) as error:  # the second: brackets in brackets in ...
        raise _Failed(f"its reply is not JSON: {_beginning(content)}") from error


def _beginning(content: bytes) -> str:
    text = " ".join(content[:400].decode(errors="replace").split())
    return text[:200] or "(nothing)"
