"""`dro-rl watch`: a run as it goes on, live on a terminal and in plain lines elsewhere."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dro_rl.errors import UserError
from dro_rl.tracking.console import LINE_EVERY, Console, evaluation_table
from dro_rl.tracking.watching import Status, Watcher, timed

_LOOK_EVERY = 1.0  # seconds
_EXAMPLE_EVERY = 60.0
_TRIES = 5  # looks in a row that may fail: a resumed run removes files
_EVALUATIONS = 6  # rows: what a small window holds
_BARS = "▁▂▃▄▅▆▇█"
_POINTS = 16  # of a curve

# Those of a step that say most, where a run has them; docs/metrics.md explains each.
_OF_A_STEP = (
    "reward/best",
    "rollout/effective_sample_size",
    "rollout/entropy",
    "rollout/malformed",
    "rollout/unrewarded",
    "selector/loss",
    "generator/loss",
    "selector/grad_norm",
    "generator/grad_norm",
    "selector/kl",
)


def watch(path: Path, console: Console) -> None:
    """Show a run until it has finished, whether it has begun or not.

    Raises:
        UserError: the place is no folder, or what it holds is damaged.
    """
    if path.is_file():
        raise UserError(f"{path}: is a file: give a run directory, as tracking.run_dir names it")
    watcher = Watcher(path)
    if not console.rich.is_terminal:
        _follow(watcher, _Lines(watcher, console).tell)
        return
    with Live(console=console.rich, auto_refresh=False) as live:
        _follow(watcher, lambda status: live.update(_screen(watcher, status), refresh=True))


def _follow(watcher: Watcher, show: Callable[[Status | None], object]) -> None:
    failures = 0
    while True:
        try:
            status = watcher.look()
            show(status)
            failures = 0
        except UserError:
            failures += 1
            if failures == _TRIES:
                raise
        else:
            if status and status.finished:
                return
        time.sleep(_LOOK_EVERY)


# --- lines ----------------------------------------------------------------------------------------


class _Lines:
    """What has changed, a line each; steps every ten seconds at most."""

    def __init__(self, watcher: Watcher, console: Console) -> None:
        self.watcher, self.console = watcher, console
        self.said, self.due, self.silence = "", 0.0, False
        self.evaluated = 1  # the warm start says nothing alone

    def tell(self, status: Status | None) -> None:
        if status is None:
            self._say(f"{self.watcher.run.path}: no run here yet; waiting for one to begin")
            return
        for count in range(self.evaluated + 1, len(status.evaluations) + 1):
            self.console.progress(status.evaluations[:count])
            self.evaluated = count
        if time.monotonic() >= self.due or status.finished:
            self._say(f"{status.stage}{_left(status)}", status.stage)
        if status.unusually_silent != self.silence:
            self.silence = status.unusually_silent
            if self.silence:
                self.console.say(_silence(self.watcher, status))
        if status.finished:
            self.console.evaluations(status.evaluations)
            for line in _example(self.watcher):
                self.console.say(line)

    def _say(self, text: str, key: str = "") -> None:
        if (key or text) != self.said:
            self.console.say(text)
            self.said, self.due = key or text, time.monotonic() + LINE_EVERY


# --- the screen -----------------------------------------------------------------------------------


def _screen(watcher: Watcher, status: Status | None) -> RenderableType:
    title = Text(str(watcher.run.path), style="bold")
    if status is None:
        return Group(title, Text("no run here yet; waiting for one to begin (Ctrl-C ends)"))
    parts: list[RenderableType] = [
        Text.assemble(title, f"  {status.recipe.algorithm.kind}"),
        _bar(status.share),
        Text(f"{status.stage}{_left(status)}"),
    ]
    if status.evaluations:
        shown = status.evaluations
        few = [shown[0], *shown[1:][-_EVALUATIONS + 1 :]]
        parts.append(evaluation_table(few))
    if status.steps:
        parts.append(_curves(status.steps))
    if status.ended:
        parts.append(Text(_rates(status.ended[-1]), style="dim"))
    parts += [Text(line) for line in _example(watcher)]
    if status.unusually_silent:
        parts.append(Text(_silence(watcher, status), style="yellow"))
    elif not status.finished:
        parts.append(Text(f"last change {status.silent:.0f} s ago; Ctrl-C ends", style="dim"))
    return Group(*parts)


def _bar(share: float) -> Table:
    row = Table.grid(padding=(0, 1))
    row.add_row(ProgressBar(total=1.0, completed=share, width=60), f"{100 * share:.0f} %")
    return row


def _curves(steps: Sequence[Mapping[str, Any]]) -> Columns:
    """The last value of each, and how it came to it; side by side where there is room."""
    lines = []
    for name in _OF_A_STEP:
        values = [row[name] for row in steps if isinstance(row.get(name), int | float)]
        if any(values):  # what is 0 throughout says nothing
            line = Text(f"{name:<30}{values[-1]:>9.4g} ")
            lines.append(line.append(curve(values), style="cyan"))
    return Columns(lines, padding=(0, 3))


def curve(values: Sequence[float]) -> str:
    """A line of bars: the values in order, several as their mean where there are many."""
    size = -(-len(values) // _POINTS)
    parts = [values[i : i + size] for i in range(0, len(values), size)]
    means = [sum(part) / len(part) for part in parts]
    low, high = min(means), max(means)
    span = (high - low) or 1.0
    return "".join(_BARS[int((mean - low) / span * (len(_BARS) - 1))] for mean in means)


def _rates(row: Mapping[str, Any]) -> str:
    """Of the last whole iteration: seconds and tokens a second by stage, the longest first."""
    times = timed(dict(row))
    longest = sorted(times, key=lambda stage: -times[stage])
    stages = []
    for stage in longest:
        rate = row.get(f"tokens_per_second/{stage}")
        stages.append(f"{stage} {times[stage]:.1f} s" + (f" ({rate:,.0f} tok/s)" if rate else ""))
    return f"iteration {row['iteration']} took {sum(times.values()):.0f} s: {', '.join(stages)}"


# --- both -----------------------------------------------------------------------------------------


def _left(status: Status) -> str:
    left = status.seconds_left
    return "" if left is None else f"; about {_duration(left)} left"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _silence(watcher: Watcher, status: Status) -> str:
    again = f"dro-rl train --resume {shlex.quote(str(watcher.run.path))}"
    return (
        f"nothing new for {_duration(status.silent)}, which is longer than usual: if it was "
        f"stopped, {again} goes on"
    )


def _example(watcher: Watcher) -> list[str]:
    """A held-out question before training and now, another one every minute."""
    found = watcher.example(int(time.time() / _EXAMPLE_EVERY))
    if found is None:
        return []
    before, now = found
    lines = [f"{now['question']}  (reference: {' | '.join(now['answers'])})"]
    for label, row in (("warm start", before), ("now", now)):
        documents = "; ".join(f"{'*' if d['is_gold'] else ''}{d['title']}" for d in row["selected"])
        answer = "" if row["answer"] is None else f"{row['answer']!r} from "  # without a generator
        lines.append(f"  {label:<10} {answer}{documents or 'no document'}")
    return [printable(line) for line in lines]


def printable(text: str) -> str:
    """Without what would move a terminal's cursor or change its colours."""
    return "".join(c if c.isprintable() else " " for c in text)
