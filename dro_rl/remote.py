"""Asks servers that a recipe names by URL: JSON both ways, time-outs, retries, limits."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import threading
import time
from concurrent.futures import Future
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from dro_rl.errors import UserError
from dro_rl.redaction import is_secret_parameter, without_secrets

_LARGEST_REPLY = 256 * 2**20  # bytes: what a server sends must not fill the memory
_WORTH_ANOTHER_TRY = (408, 429, 500, 502, 503, 504)
_PASSWORD = "must not hold a user or password: put the token in DRO_RL_TOKEN"


class NoReply(UserError):
    """A server gave no usable reply, however often it was asked."""


def url_problem(url: str) -> str | None:
    """What is wrong with a URL that is to be asked, if anything; never repeats it, for it may hold
    a password."""
    try:
        parsed = urlsplit(url)
        host, _ = parsed.hostname, parsed.port  # which raise where they are no host and no port
    except ValueError:
        return _PASSWORD if "@" in url else "is not a URL"
    if parsed.scheme not in ("http", "https") or not host:
        return "must begin with http:// or https:// and name a host"
    if "@" in parsed.netloc:
        return _PASSWORD
    parameters = parse_qsl(f"{parsed.query}&{parsed.fragment}", keep_blank_values=True)
    if any(is_secret_parameter(name) for name, _ in parameters):
        return "must not hold a key or token: put it in DRO_RL_TOKEN"
    return None


def check_url(url: str, setting: str) -> str:
    """The URL, if it is one of http or https and holds no password.

    Raises:
        UserError: names the setting.
    """
    problem = url_problem(url)
    if problem:
        raise UserError(f"{setting}: {without_secrets(url)!r} {problem}")
    return url


def bearer_token(variable: str = "DRO_RL_TOKEN") -> str | None:
    """What the environment has under that name, without white space around it, if anything.

    Raises:
        UserError: that is no name of a variable, and may be a token itself, or a header cannot
            carry what the variable holds; shows neither.
    """
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", variable):
        raise UserError(
            "a token is given by the name of the environment variable that holds it, in capitals "
            "such as OPENAI_API_KEY, and never itself: recipes are kept in run directories"
        )
    token = os.environ.get(variable, "").strip()
    if not (token.isascii() and token.isprintable()):
        raise UserError(
            f"{variable}: holds something else than printable ASCII characters, which is all that "
            "a token may have: set it again"
        )
    return token or None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, or nothing, which means everywhere
        return host == "localhost"


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
    environment has under `token_variable` is sent as bearer token, to this URL alone: no redirect
    is followed.

    Raises:
        UserError: no usable reply came; names the setting, the URL and the last failure.
    """
    import httpx  # here because recipes are checked with this module too, and it takes its time

    check_url(url, setting)
    content = _encoded(body, setting)
    # What is not compressed cannot grow: a bomb of two layers makes a gigabyte of a kilobyte.
    headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
    token = bearer_token(token_variable)
    if token:
        headers["Authorization"] = f"Bearer {token}"
    failure = ""
    for attempt in range(attempts):
        if attempt:
            time.sleep(0.5 * 2 ** (attempt - 1))
        try:
            return _decoded(*_post_once(url, content, headers, timeout), token)
        except _Refused as error:
            raise UserError(f"{setting}: {url} {error}") from error
        except httpx.InvalidURL as error:
            raise UserError(f"{setting}: {url!r} is not a URL ({error})") from error
        except (httpx.HTTPError, _Failed) as error:
            failure = str(error) or type(error).__name__
            if isinstance(error, httpx.TimeoutException):
                failure = f"no reply within {timeout:g} s"
    raise NoReply(
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


def _post_once(url: str, body: bytes, headers: dict[str, str], timeout: float) -> tuple[int, bytes]:
    """The status and content of the reply.

    httpx limits each wait for bytes, and neither their sum nor the look-up of a name: a server that
    sends a byte now and then would be listened to for ever. So the waiting is done elsewhere.
    """
    import httpx

    future: Future[tuple[int, bytes]] = Future()

    def ask() -> None:
        try:
            future.set_result(_exchange(client, url, body, headers))
        except BaseException as error:
            future.set_exception(error)

    with httpx.Client(timeout=timeout, follow_redirects=False) as client:
        threading.Thread(target=ask, daemon=True).start()
        try:
            return future.result(timeout)
        except TimeoutError as error:
            raise httpx.ReadTimeout("") from error


def _exchange(client: Any, url: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
    content = bytearray()
    token = headers.get("Authorization", "").removeprefix("Bearer ")
    with client.stream("POST", url, content=body, headers=headers) as reply:
        coding = reply.headers.get("content-encoding", "identity")
        if coding.lower() != "identity":
            coding = _beginning(coding.encode(), token)
            raise _Refused(f"sends compressed data ({coding}), unasked: turn that off there")
        for chunk in reply.iter_raw():
            content += chunk
            if len(content) > _LARGEST_REPLY:
                raise _Refused(f"sends more than {_LARGEST_REPLY // 2**20} MiB: ask for less")
    if reply.has_redirect_location:
        place = _beginning(reply.headers["location"].encode(), token)
        raise _Refused(
            f"answered {reply.status_code} and sends us to {place!r}: give the address that "
            "answers itself"
        )
    return reply.status_code, bytes(content)


def _decoded(status: int, content: bytes, token: str | None) -> Any:
    if status in _WORTH_ANOTHER_TRY:
        raise _Failed(f"it answered {status}: {_beginning(content, token)}")
    if status != 200:
        raise _Refused(f"answered {status}: {_beginning(content, token)}")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:  # the second: brackets in brackets in ...
        raise _Failed(f"its reply is not JSON: {_beginning(content, token)}") from error


def _beginning(content: bytes, token: str | None) -> str:
    """What a server says, less the token, which it has been told."""
    text = " ".join(content[:4000].decode(errors="replace").split())
    if token:
        text = text.replace(token, "***")
    return without_secrets(text)[:200] or "(nothing)"
