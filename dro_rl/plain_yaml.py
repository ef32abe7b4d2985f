"""YAML that others wrote: by the safe loader, plain values alone, and never more than fits."""

from __future__ import annotations

from typing import Any

import yaml

_LONGEST = 2**16  # characters: PyYAML may need a second for them, and a recipe has 5,000
_MOST = 20_000  # values, with what aliases stand for: nine lines of them can mean 10^9
_DEEPEST = 40  # lists in lists
_LARGEST = 2**63  # of a whole number


class NotPlain(ValueError):
    """What is wrong, for a message; `place` is ", line 3, column 1" where that is known."""

    def __init__(self, told: str, mark: Any = None) -> None:
        super().__init__(told)
        self.place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""


def read_plain(text: str) -> Any:
    """The value of a YAML text: None, switches, numbers, text, lists and mappings of these.

    Raises:
        NotPlain: it is not YAML, or means more than a recipe can say.
    """
    if len(text) > _LONGEST:
        raise NotPlain(f"has {len(text):,} characters, more than the {_LONGEST:,} that are read")
    loader = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _measure(node, {})
        value = loader.construct_document(node)
    except NotPlain:
        raise
    except yaml.YAMLError as error:
        told = getattr(error, "problem", None) or "not YAML"
        raise NotPlain(told, getattr(error, "problem_mark", None)) from error
    except RecursionError as error:
        raise _too_deep() from error
    except Exception as error:  # PyYAML's own at a tag that lies: `!!bool x`, `!!timestamp x`
        raise NotPlain(f"a value is not what it says it is ({error})") from error
    finally:
        if loader is not None:
            loader.dispose()
    _check_plain(value)
    return value


def _measure(node: yaml.Node, known: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    """How many values a node means, aliases written out, and how deep they are nested; before
    anything is made of it."""
    if id(node) in known:
        found = known[id(node)]
        if found is None:
            raise NotPlain("an alias stands for a part that it is in", node.start_mark)
        return found
    known[id(node)] = None
    size, depth = 1, 0
    for child in _children(node):
        more, deeper = _measure(child, known)
        size, depth = size + more, max(depth, deeper)
        if size > _MOST:
            raise NotPlain(f"means more than {_MOST:,} values", node.start_mark)
    if depth >= _DEEPEST:
        raise _too_deep()
    known[id(node)] = size, depth + 1
    return size, depth + 1


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _too_deep() -> NotPlain:
    return NotPlain(f"is nested more than {_DEEPEST} deep")


def _check_plain(value: Any) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            _check_plain(key)
            _check_plain(item)
    elif isinstance(value, list):
        for item in value:
            _check_plain(item)
    elif isinstance(value, int):
        if abs(value) >= _LARGEST:  # not shown: Python may refuse to write it out
            raise NotPlain("has a whole number beyond 63 bits")
    elif isinstance(value, str):
        if "\0" in value or any("\ud800" <= c <= "\udfff" for c in value):
            raise NotPlain(f"{value[:40]!r} holds what is no character of a text")
    elif not isinstance(value, float | None):
        raise NotPlain(f"{str(value)[:40]!r} is a {type(value).__name__}: write it in quotes")
