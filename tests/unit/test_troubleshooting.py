"""Every message that docs/troubleshooting.md quotes is one that the program can print."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.commands import ROOT

pytestmark = pytest.mark.unit

DOCS = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
QUOTED = re.findall(r"^\| `(.+?)` \|", DOCS, re.M)


def texts() -> Iterator[str]:
    """The strings of the source, each with ... for what is put in, and those after one another."""
    for path in (ROOT / "dro_rl").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr | ast.BinOp | ast.Constant):
                yield in_words(node)


def in_words(node: ast.AST) -> str:
    match node:
        case ast.Constant(value=str() as text):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(in_words(part) for part in parts)
        case ast.BinOp(left=left, right=right):
            return in_words(left) + in_words(right)
    return "..."


SOURCE = "\n".join({re.sub(r"(\.\.\.)+", "...", text) for text in texts()})


def test_it_quotes_many():
    assert len(QUOTED) > 40


@pytest.mark.parametrize("message", QUOTED)
def test_the_message_is_in_the_source(message):
    fragments = [part.strip(" :;,.()") for part in message.split("...")]
    long = [part for part in fragments if len(part) > 7]
    assert long, "nothing of it is fixed"
    line = ".*".join(re.escape(part) for part in long)
    assert re.search(line, SOURCE), f"no string of the source has all of {long} in this order"
