"""What must not be told: passwords and keys in URLs, and secrets of the environment."""

from __future__ import annotations

import os
import re

_NAMES = r"token|key|secret|passw(?:or)?d|credentials?"  # of variables
_VARIABLE = re.compile(rf".*(?:{_NAMES})", re.IGNORECASE)
_NAMES_IN_URLS = rf"(?:[^=&#\s]*[_.-])?(?:api)?(?:{_NAMES}|pwd|signature|sig|auth)"
_PARAMETER = re.compile(_NAMES_IN_URLS, re.IGNORECASE)
_SHORTEST = 8  # characters: a shorter value may stand anywhere by chance
_USER = re.compile(r"://[^'\"\n]*@")  # a password may hold what no URL may
_IN_QUERY = re.compile(rf"([?&#]{_NAMES_IN_URLS}=)[^&#\s'\"]+", re.IGNORECASE)
_HIDDEN = "***"


def is_secret_parameter(name: str) -> bool:
    """Whether a parameter of a URL is one that carries secrets, by its name."""
    return _PARAMETER.fullmatch(name) is not None


def holder_of(text: str) -> str | None:
    """The environment variable whose secret a text holds, if it does."""
    return next((name for name, value in _secrets() if value in text), None)


def without_secrets(text: str) -> str:
    """The text with *** for what is a secret of the environment, or looks like one in a URL."""
    for _, value in _secrets():
        text = text.replace(value, _HIDDEN)
    return _IN_QUERY.sub(rf"\1{_HIDDEN}", _USER.sub(f"://{_HIDDEN}@", text))


def _secrets() -> list[tuple[str, str]]:
    """(variable, value), the longest first, so that none is hidden in part. A path is none: it
    tells where a key lies."""
    found = [
        (name, value.strip())
        for name, value in os.environ.items()
        if _VARIABLE.fullmatch(name)
        and len(value.strip()) >= _SHORTEST
        and not os.path.exists(os.path.expanduser(value.strip()))
    ]
    return sorted(found, key=lambda pair: -len(pair[1]))
