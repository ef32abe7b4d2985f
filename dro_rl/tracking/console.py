"""What a run shows while it works: live bars on a terminal, plain lines in a file."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console as RichConsole
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

Advance = Callable[[int], None]
LINE_EVERY = 10.0  # seconds between progress lines in a file
_NAME = 60  # characters of an operator's name: a kernel's may have hundreds

# key, heading, format, factor
_COLUMNS = (
    ("em", "EM", "{:.1f}", 100),
    ("f1", "F1", "{:.1f}", 100),
    ("recall@1", "R@1", "{:.1f}", 100),
    ("recall@3", "R@3", "{:.1f}", 100),
    ("recall@5", "R@5", "{:.1f}", 100),
    ("gold_recall", "gold", "{:.1f}", 100),
    ("bound", "bound", "{:.3f}", 1),
    ("bound_se", "± s.e.", "{:.3f}", 1),
    ("reward", "reward", "{:.3f}", 1),
    ("effective_sample_size", "ESS", "{:.2f}", 1),
    ("malformed", "malf.", "{:.1f}", 100),
)

_OF_ANSWERS = ("em", "f1", "bound", "bound_se", "effective_sample_size")


class Console:
    """Prints stages, figures and tables of one command."""

    def __init__(self, rich: RichConsole | None = None) -> None:
        self.rich = rich or RichConsole(highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """One line."""
        self.rich.print(text, markup=False, emoji=False)

    @contextmanager
    def stage(self, title: str, total: int, unit: str) -> Iterator[Advance]:
        """A stage of `total` units; call what it yields with the number just done."""
        start = time.monotonic()
        runner = self._bar if self.rich.is_terminal else self._lines
        with runner(title, total, unit) as advance:
            yield advance
        self.say(f"{title}: {total} {unit} in {time.monotonic() - start:.1f} s")

    @contextmanager
    def _bar(self, title: str, total: int, unit: str) -> Iterator[Advance]:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeElapsedColumn(),  # an engine takes all questions of a stage in one call
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.rich, transient=True) as progress:
            task = progress.add_task(escape(title), total=total)
            yield lambda n: progress.advance(task, n)

    @contextmanager
    def _lines(self, title: str, total: int, unit: str) -> Iterator[Advance]:
        start, done = time.monotonic(), 0

        def advance(n: int) -> None:
            nonlocal done
            done += n

        def tell() -> None:
            passed = time.monotonic() - start
            left = f", about {passed / done * (total - done):.0f} s left" if done else ""
            self.say(f"{title}: {done}/{total} {unit} after {passed:.0f} s{left}")

        with _every(LINE_EVERY, tell):
            yield advance

    def evaluations(self, summaries: Sequence[Mapping[str, Any]]) -> None:
        """The table of a run: a row an evaluation, the warm start's first."""
        table = evaluation_table(summaries)
        RichConsole(file=self.rich.file, width=max(self.rich.width, 100)).print(table)

    def timeline(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Where the time of a run's iterations went: a row a stage, the longest first.

        `rows` are those of metrics.jsonl for iterations as a whole.
        """
        times, counts = _sums(rows, "time"), _sums(rows, "tokens")
        whole = sum(times.values())
        title = f"Timeline: {len(rows)} iterations in {whole:.1f} s"
        table = Table(box=box.SIMPLE_HEAD, title=title)
        for heading in ("stage", "seconds", "share", "tokens", "tokens/s", "MFU"):
            table.add_column(heading, justify="left" if heading == "stage" else "right")
        for stage, seconds in times.most_common():
            tokens = counts[stage]
            used = sum(r.get(f"mfu/{stage}", 0.0) * r.get(f"time/{stage}", 0.0) for r in rows)
            table.add_row(
                stage,
                f"{seconds:.1f}",
                f"{100 * seconds / whole:.1f} %",
                f"{tokens:,}" if tokens else "-",
                f"{tokens / seconds:,.0f}" if tokens else "-",
                f"{100 * used / seconds:.1f} %" if used else "-",
            )
        RichConsole(file=self.rich.file, width=max(self.rich.width, 100)).print(table)
        for kind, name in (("memory", "memory"), ("gpu_memory", "GPU memory")):
            last = _under(rows[-1], kind)
            peaks = [f"{role.replace('_', ' ')} {gib:.2f}" for role, gib in last.items()]
            if peaks:
                self.say(f"peak {name} [GiB]: {', '.join(peaks)}")

    def operators(self, title: str, rows: Sequence[Any]) -> None:
        """A table of `dro-rl profile`: rows of `dro_rl.profiling.Operator`."""
        self.say(title)
        if not rows:
            return  # the stage is Python alone
        table = Table(box=box.SIMPLE_HEAD)
        for heading in ("operator", "seconds", "share", "calls"):
            table.add_column(heading, justify="left" if heading == "operator" else "right")
        for r in rows:
            name = r.name if len(r.name) <= _NAME else f"{r.name[: _NAME - 3]}..."
            cells = (f"{r.seconds:.4f}", f"{100 * r.share:.1f} %", f"{r.calls:,}")
            table.add_row(escape(name), *cells)
        RichConsole(file=self.rich.file, width=max(self.rich.width, 100)).print(table)

    def variances(self, rows: Sequence[Any]) -> None:
        """The table of `dro-rl variance`: rows of `dro_rl.variance.Row`."""
        table = Table(box=box.SIMPLE_HEAD, title="Variance of the selector's gradient")
        headings = ("iteration", "estimator", "m", "variance", "noise / signal", "var. of weights")
        for heading in headings:
            table.add_column(heading, justify="left" if heading == "estimator" else "right")
        for r in sorted(rows, key=lambda r: (r.iteration, r.estimator, r.samples)):
            table.add_row(
                str(r.iteration),
                r.estimator,
                str(r.samples),
                f"{r.gradient_variance:.4g}",
                f"{r.noise:.4g}",
                f"{r.weight_variance:.4f}",
            )
        RichConsole(file=self.rich.file, width=max(self.rich.width, 100)).print(table)

    def progress(self, summaries: Sequence[Mapping[str, Any]]) -> None:
        """One line: where the figures were, and where they are now."""
        first, last = summaries[0], summaries[-1]
        moves = [
            f"{heading} " + " -> ".join(_figure(s, key, form, factor) for s in (first, last))
            for key, heading, form, factor in _COLUMNS
            if key in ("em", "f1", "gold_recall", "bound", "reward") and last.get(key) is not None
        ]
        self.say(f"iteration {last['iteration']}: {', '.join(moves)} (warm start -> now)")

    def examples(self, before: Sequence[Mapping], after: Sequence[Mapping], count: int = 3) -> None:
        """Questions with what was selected and answered before and after.

        Those whose selection changed come first: they show what was learned.
        """
        pairs = sorted(
            zip(before, after, strict=True), key=lambda p: p[0]["selected"] == p[1]["selected"]
        )
        for old, new in pairs[:count]:
            self.say(f"\n{new['question']}  (reference: {' | '.join(new['answers'])})")
            for label, row in (("before", old), ("after ", new)):
                documents = " ; ".join(
                    f"{'*' if d['is_gold'] else ' '}{d['title']}: {d['text'][:60]}"
                    for d in row["selected"]
                )
                self.say(f"  {label} {row['answer']!r:<24} from {documents or 'no document'}")
        self.say("  (* marks a gold document)")


def evaluation_table(summaries: Sequence[Mapping[str, Any]]) -> Table:
    """A row an evaluation."""
    table = Table(box=box.SIMPLE_HEAD, title="Held-out questions, greedy decoding (rates in %)")
    table.add_column("iteration", justify="right")
    columns = _columns(summaries)
    for _, heading, _, _ in columns:
        table.add_column(heading, justify="right")
    for summary in summaries:
        cells = [_figure(summary, key, form, factor) for key, _, form, factor in columns]
        name = "warm start" if summary["iteration"] == 0 else str(summary["iteration"])
        table.add_row(name, *cells)
    return table


def _under(row: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The metrics of a row that are named KIND/..., by the rest of their name."""
    return {k.partition("/")[2]: v for k, v in row.items() if k.partition("/")[0] == kind}


def _sums(rows: Sequence[Mapping[str, Any]], kind: str) -> Counter[str]:
    total: Counter[str] = Counter()
    for row in rows:
        total.update(_under(row, kind))
    return total


@contextmanager
def _every(seconds: float, call: Callable[[], None]) -> Iterator[None]:
    """Call again and again while the block runs, whatever it waits for."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(seconds):
            call()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _columns(summaries: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str, float]]:
    """Without a generator there are no answers, and a reward instead."""
    answered = any(summary.get("em") is not None for summary in summaries)
    hidden = ("reward",) if answered else _OF_ANSWERS
    return [column for column in _COLUMNS if column[0] not in hidden]


def _figure(summary: Mapping[str, Any], key: str, form: str, factor: float) -> str:
    value = summary.get(key)
    return "-" if value is None else form.format(value * factor)
