"""Pages of one file: a body, a style, scripts and data from `page/`, and nothing from elsewhere."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
import math
from collections.abc import Mapping
from importlib import resources
from typing import Any, Literal

_SCRIPTS = {
    "run": ("elements.js", "charts.js", "browser.js", "run.js"),
    "comparison": ("elements.js", "charts.js", "comparison.js"),
}


def page(
    kind: Literal["run", "comparison"],
    title: str,
    data: Mapping[str, Any],
    blocks: Mapping[str, Any],
) -> str:
    """The page with everything in it. Its policy allows this style and this script alone, and no
    request, so that text from data can neither act nor tell anyone.

    Args:
        kind: which body and scripts.
        title: of the page.
        data: what the page shows, as JSON in it.
        blocks: large parts by name, compressed, which the browser unpacks when they are looked at;
            their numbers must be finite.
    """
    folder = resources.files("dro_rl.tracking") / "page"
    style = (folder / "page.css").read_text("utf-8")
    script = "".join((folder / name).read_text("utf-8") for name in _SCRIPTS[kind])
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    packed = "".join(
        f'<script type="text/plain" id="{name}">{_packed(block)}</script>\n'
        for name, block in blocks.items()
    )
    parts = {
        "{{policy}}": policy,
        "{{title}}": html.escape(title),
        "{{style}}": style,
        "{{body}}": (folder / f"{kind}.html").read_text("utf-8"),
        "{{data}}": _json(_finite(data)).replace("<", "\\u003c"),  # no "</script>" from data
        "{{blocks}}": packed,
        "{{script}}": script,
    }
    rest = (folder / "page.html").read_text("utf-8")
    pieces = []
    for marker, text in parts.items():  # in their order, so that none is looked for in data
        before, rest = rest.split(marker)
        pieces += [before, text]
    return "".join([*pieces, rest])


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _packed(block: Any) -> str:
    # mtime: equal runs give equal pages.
    return base64.b64encode(gzip.compress(_json(block).encode(), 6, mtime=0)).decode()


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _finite(value: Any) -> Any:
    """The value with null for what JSON has no number for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list | tuple) else value
