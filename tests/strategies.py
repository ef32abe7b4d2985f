"""Hypothesis strategies for what comes from outside: texts, values, files that are nearly right.

Nothing is nested deeper than a few levels, but for a handful of fixed hostile texts.
"""

from __future__ import annotations

import copy
import gzip
import json
from typing import Any

from hypothesis import strategies as st

TEXTS = st.text(max_size=24) | st.sampled_from(
    ["", " ", "\0", "\ud800", "\u2028", "</script>", "../..", "~nobody/x", "x" * 300, "${HOME}"]
)
NUMBERS = (
    st.integers(-3, 40)
    | st.integers()
    | st.floats()
    | st.sampled_from([2**31, 2**63, -(2**63), 10**30, 1e308, 5e-324])
)
PLAIN = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


@st.composite
def nearly(draw: st.DrawFn, wholes: list[Any]) -> Any:
    """One of the values, with up to three of its parts removed, replaced, renamed or repeated."""
    whole = copy.deepcopy(draw(st.sampled_from(wholes)))
    for _ in range(draw(st.sampled_from([0, 1, 1, 2, 3]))):
        places = [*_places(whole)]
        if not places:
            return draw(PLAIN)
        owner, key = places[draw(st.integers(0, len(places) - 1))]
        what = draw(st.sampled_from(["replace", "replace", "remove", "rename", "repeat"]))
        if what == "replace":
            owner[key] = draw(PLAIN)
        elif what == "remove":
            del owner[key]
        elif what == "rename" and isinstance(owner, dict):
            owner[draw(st.text(max_size=8))] = owner.pop(key)
        elif isinstance(owner, list):
            owner.append(owner[key])
    return whole


def _places(tree: Any) -> Any:
    """(container, key) of every part."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in [*items]:
        yield tree, key
        if isinstance(value, dict | list):
            yield from _places(value)


@st.composite
def broken(draw: st.DrawFn, content: bytes) -> bytes:
    """The content with a bit flipped here and there, cut short, or with something put in."""
    damage = draw(st.sampled_from(["none", "none", "bits", "cut", "insert"]))
    if damage == "cut":
        return content[: draw(st.integers(0, len(content)))]
    if damage == "insert":
        at = draw(st.integers(0, len(content)))
        return content[:at] + draw(st.binary(min_size=1, max_size=8)) + content[at:]
    flipped = bytearray(content)
    for _ in range(draw(st.integers(1, 4)) if damage == "bits" and content else 0):
        flipped[draw(st.integers(0, len(content) - 1))] ^= 1 << draw(st.integers(0, 7))
    return bytes(flipped)


@st.composite
def files(draw: st.DrawFn, records: list[Any]) -> bytes:
    """A data file of such records: a JSON list or JSON lines, gzipped or not, whole or not."""
    some = [draw(nearly(records)) for _ in range(draw(st.sampled_from([0, 1, 1, 1, 2, 3])))]
    texts = [json.dumps(record, ensure_ascii=draw(st.booleans())) for record in some]
    text = f"[{', '.join(texts)}]" if draw(st.booleans()) else "\n".join(texts)
    content = draw(broken(text.encode(errors="surrogatepass")))
    if draw(st.integers(0, 4)) == 0:
        content = draw(broken(gzip.compress(content, 1, mtime=0)))
    return content if draw(st.integers(0, 9)) else draw(st.binary(max_size=64))


SELECTIONS = st.one_of(
    st.text(max_size=60),
    st.lists(
        st.sampled_from(["[", "]", ">", " > ", "[1]", "[ 2 ]", "[03]", "[٣]", "[²]", "\n", "-"])
        | st.integers(-5, 10**12).map(str)
        | st.text(max_size=2),
        max_size=12,
    ).map("".join),
)
