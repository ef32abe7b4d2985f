"""Whether a worker's process still works on its call, and the stack of one that does not."""

from __future__ import annotations

import re
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from dro_rl.cluster.host import WATCH
from dro_rl.sections.process import ClusterSection
from dro_rl.tracking.run_directory import write_text

_BEAT = 5.0  # seconds between looks
_ANSWERS_WITHIN = 10.0  # seconds that a process has to give its stack


def beat(section: ClusterSection) -> float:
    """Seconds between two looks at a worker that is waited for."""
    return min(_BEAT, section.heartbeat_timeout / 4, section.call_timeout / 4)


class Heart:
    """Asks an actor of `Host` for its pulse, without waiting for it."""

    def __init__(self, actor: Any, section: ClusterSection) -> None:
        self._actor, self._section = actor, section
        self._asked: Any = None
        self._silent_since = self._looked = 0.0
        self.running = 0.0  # seconds that its call had run when it last answered

    def fails(self) -> str:
        """Why the actor, which has a call to run, is taken to hang; empty where it does not.

        To be called every `beat` while the call is waited for.
        """
        import ray
        from ray.exceptions import RayError

        now = time.monotonic()
        if now - self._looked > 2 * beat(self._section):  # nobody waited, or this process stood
            self._asked = None
        self._looked = now
        if self._asked is None:
            self._asked = self._actor.pulse.options(concurrency_group=WATCH).remote()
            self._silent_since = now
            return ""
        limit = self._section.heartbeat_timeout
        if not ray.wait([self._asked], timeout=0)[0]:
            silent = now - self._silent_since
            told = f"no answer for {silent:.0f} s (cluster.heartbeat_timeout)"
            return told if silent > limit else ""
        asked, self._asked = self._asked, None
        try:
            pulse: Any = ray.get(asked)
        except RayError:  # it is dead, and its call is about to say so
            return ""
        if pulse.still > limit:
            return f"it has not moved for {pulse.still:.0f} s (cluster.heartbeat_timeout)"
        self.running = pulse.running
        return ""

    def stack(self) -> str | None:
        """What every thread of the process does; None where it does not say."""
        import ray
        from ray.exceptions import RayError

        asked = self._actor.stack.options(concurrency_group=WATCH).remote()
        try:
            return ray.get(asked, timeout=_ANSWERS_WITHIN)
        except (RayError, TimeoutError):
            return None


def keep_stack(folder: Path | None, name: str, stack: str | None) -> str:
    """Write a worker's stack to the folder; in words, where it is."""
    if stack is None:
        return "no stack could be had: the process is stopped, or one of its threads holds up all"
    if folder is None:
        return f"its stack:\n{stack}"
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    path = folder / f"{slug}-{datetime.now():%Y%m%d-%H%M%S}.txt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, stack)
    except OSError as error:
        return f"its stack could not be written to {path} ({error.strerror})"
    return f"its stack: {path}"
