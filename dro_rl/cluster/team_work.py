"""Calls under way, and the workers that have them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dro_rl.cluster.heartbeat import Heart

Say = Callable[[str], object]
Check = Callable[[Any], object]
Done = Callable[[int], None]


@dataclass(eq=False)
class Call:
    """What a worker is asked: its place among the results, and how it is sent to an actor."""

    number: int
    method: str
    send: Callable[[Any], Any]
    failures: int = 0


@dataclass(eq=False)
class Member:
    """A place in a team, whose actor changes when it is lost.

    `starting` are the calls that it has yet to go through before it takes work, with what looks at
    their results; empty: it serves. `failures` are losses since it last finished a call.
    """

    name: str
    number: int = 0
    actor: Any = None
    heart: Heart = field(init=False)
    starting: list[tuple[Any, Check | None]] = field(default_factory=list)
    began: float = 0.0
    failures: int = 0
    about: Any = None
    killed_for: str = ""


@dataclass
class Work:
    """Calls to be made, under way (by reference) and done.

    `spare`: a call whose worker was lost is not made again as long as others give a result.
    """

    todo: deque[Call] = field(default_factory=deque)
    running: dict[Any, tuple[Call, Member, Any]] = field(default_factory=dict)
    results: dict[int, Any] = field(default_factory=dict)
    spare: bool = False
