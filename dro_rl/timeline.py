"""Where an iteration's time goes: seconds of every stage, tokens through its model, utilisation."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from dro_rl.records import Rollout


@dataclass(slots=True)
class Stage:
    """Seconds that a stage took, tokens and model FLOPs that it had to run; 0 where unknown."""

    seconds: float = 0.0
    tokens: int = 0
    flops: float = 0.0


class Timeline:
    """The stages of one iteration, which starts when this is made."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._now: tuple[str, float] | None = None  # the stage at work, and since when
        self.stages: dict[str, Stage] = {}

    @classmethod
    def resumed(cls, state: Mapping[str, Any]) -> Timeline:
        """One that goes on from what `state` gave, in another process too."""
        timeline = cls()
        timeline._start -= state["seconds"]
        timeline.stages = {name: Stage(**stage) for name, stage in state["stages"].items()}
        return timeline

    def state(self) -> dict[str, Any]:
        """What `resumed` takes, as plain values: the stage at work counts up to now."""
        stages = {name: asdict(stage) for name, stage in self.stages.items()}
        if self._now:
            name, since = self._now
            stages.setdefault(name, asdict(Stage()))["seconds"] += time.monotonic() - since
        return {"seconds": time.monotonic() - self._start, "stages": stages}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage; it must not be inside another, or seconds would count twice."""
        start = time.monotonic()
        self._now = (name, start)
        yield
        self._now = None
        self.add(name, seconds=time.monotonic() - start)

    def add(self, name: str, seconds: float = 0.0, tokens: int = 0, flops: float = 0.0) -> None:
        """Count something for a stage."""
        stage = self.stages.setdefault(name, Stage())
        stage.seconds += seconds
        stage.tokens += tokens
        stage.flops += flops

    def figures(self, peak: float | None) -> dict[str, float]:
        """The metrics of the iteration up to now: see `figures`."""
        return figures(self.stages, time.monotonic() - self._start, peak)


def figures(stages: Mapping[str, Stage], seconds: float, peak: float | None) -> dict[str, float]:
    """Metrics by stage, under the names of docs/metrics.md.

    Args:
        stages: what was timed and counted.
        seconds: wall-clock of the iteration; what no stage has of it is `other`.
        peak: FLOP/s of the devices that count FLOPs, None where it is not known.
    """
    row: dict[str, float] = {}
    other = Stage(seconds - sum(s.seconds for s in stages.values()))
    for name, stage in {**stages, "other": other}.items():
        row[f"time/{name}"] = stage.seconds
        row[f"share/{name}"] = stage.seconds / seconds
        if stage.tokens:
            row[f"tokens/{name}"] = stage.tokens
            row[f"tokens_per_second/{name}"] = stage.tokens / stage.seconds
        if stage.flops and peak:
            row[f"mfu/{name}"] = stage.flops / (stage.seconds * peak)
    return row


def sampled_tokens(rollout: Rollout) -> int:
    """What sampling a group has to run: its prompt once, and every token of its selections; 0 of a
    selector that reads no prompt, whose engine alone knows."""
    if not rollout.prompt_ids:
        return 0
    return len(rollout.prompt_ids) + sum(len(s.token_ids) for s in rollout.selections)


def scored_tokens(rollout: Rollout) -> int:
    """What scoring a group has to run: its prompt once, and every different selection once; 0 as
    above."""
    if not rollout.prompt_ids:
        return 0
    return len(rollout.prompt_ids) + sum(map(len, {s.token_ids for s in rollout.selections}))
