"""The report of a comparison: report.md, results.csv, figures, and the same tables on screen."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import quote

from rich import box
from rich.console import Console as RichConsole
from rich.markup import escape
from rich.table import Table as RichTable

from dro_rl.comparison.figures import figures_data, write_figures
from dro_rl.comparison.runs import Result, Run, runs_of
from dro_rl.comparison.spec import Comparison
from dro_rl.comparison.tables import (
    Table,
    arms_table,
    iterations_table,
    paired_table,
    settings_table,
)
from dro_rl.evaluation.significance import RESAMPLES
from dro_rl.tracking.console import Console
from dro_rl.tracking.pages import page
from dro_rl.tracking.run_directory import write_text
from dro_rl.tracking.versions import environment

_WIDTH = 200  # columns of tables on the screen, at least: a figure must not be cut


@dataclass(frozen=True)
class Failure:
    """A run that ended in an error, and the error's last line or message."""

    run: Run
    error: str


@dataclass(frozen=True)
class Report:
    """All that is known of a comparison; made anew after each run."""

    comparison: Comparison
    command: str
    results: Sequence[Result]
    failures: Sequence[Failure]
    waiting: int  # runs that have not ended yet

    def write(self) -> None:
        """report.html, report.md, results.csv and figures/ in the comparison's output folder."""
        output = self.comparison.output
        output.mkdir(parents=True, exist_ok=True)
        figures = write_figures(self.comparison, self.results)
        write_text(output / "results.csv", results_csv(self.comparison, self.results))
        links = "".join(f"![{f.stem}](figures/{f.name})\n" for f in figures)
        write_text(output / "report.md", self._text(links))
        title = self.comparison.path.stem
        write_text(output / "report.html", page("comparison", title, self._data(), {}))

    def _data(self) -> dict[str, Any]:
        """What the page shows."""
        settings, arms, paired = self._tables()
        errors = {f.run.title: f.error for f in self.failures}
        done = {(r.arm, r.seed) for r in self.results}
        return {
            "title": self.comparison.path.stem,
            "command": self.command,
            "names": [arm.name for arm in self.comparison.arms],
            "arms": asdict(arms),
            "differences": asdict(paired),
            "settings": asdict(settings),
            "notes": [self.note_on_arms(), self.note_on_pairs()],
            "figures": figures_data(self.comparison, self.results),
            "runs": [
                {
                    "title": run.title,
                    "report": self._link(run) if (run.arm, run.seed) in done else None,
                    "error": errors.get(run.title),
                }
                for run in runs_of(self.comparison)
            ],
        }

    def _link(self, run: Run) -> str | None:
        page = run.folder / "report.html"
        return quote(str(page.relative_to(self.comparison.output))) if page.is_file() else None

    def _text(self, links: str) -> str:
        settings, arms, paired = self._tables()
        parts = [
            f"# {self.comparison.path.stem}: {', '.join(a.name for a in self.comparison.arms)}",
            f"```sh\n{self.command}\n```",
            self._standing(),
            "## What differs between the arms",
            settings.markdown() if settings.rows else "Nothing but their names.",
            "Every other setting is the same.",
            "## Held-out questions after the last iteration",
            arms.markdown() if arms.rows else "No run has finished yet.",
            self.note_on_arms(),
        ]
        if paired.rows:
            parts += ["## Differences to the first arm", paired.markdown(), self.note_on_pairs()]
        by_iteration = iterations_table(self.comparison, self.results)
        if by_iteration.rows:
            parts += ["## By iteration", by_iteration.markdown()]
        if links:
            parts += ["## By selections drawn", links, "Line: mean over the seeds that got so far."]
            parts[-1] += " Band: from the lowest seed to the highest."
        parts += ["## Versions", "".join(f"- {line}\n" for line in environment())]
        return "\n\n".join(part.strip() for part in parts if part) + "\n"

    def _tables(self) -> tuple[Table, Table, Table]:
        given = self.comparison, self.results
        return settings_table(self.comparison), arms_table(*given), paired_table(*given)

    def _standing(self) -> str:
        """What the tables leave out."""
        lines = ["**Runs that failed are not in the tables:**\n"] if self.failures else []
        for failure in self.failures:
            error, log = " ".join(failure.error.split()), failure.run.log
            place = log.relative_to(self.comparison.output)
            lines.append(f"- {failure.run.title}: `{error}` ([log]({place}))")
        if self.waiting:
            lines += [f"\n**{self.waiting} runs have not finished yet.**"]
        return "\n".join(lines)

    def note_on_arms(self) -> str:
        """How to read the table of arms."""
        single = "no interval where there is one seed" if self._has_single() else ""
        return "; ".join(
            filter(
                None,
                [
                    "Mean over seeds ± half of the 95 % interval (Student's t over seeds)",
                    single,
                    "EM, F1, recall and malformed in %, bound in nats, seconds of training "
                    "without evaluation.",
                ],
            )
        )

    def _has_single(self) -> bool:
        arms = [r.arm for r in self.results]
        return any(arms.count(arm) == 1 for arm in arms)

    def note_on_pairs(self) -> str:
        """How to read the table of differences."""
        return (
            f"Mean difference and 95 % interval of a paired bootstrap over held-out questions "
            f"({RESAMPLES:,} resamples within each seed); * marks an interval without 0. The "
            "interval is conditional on these seeds, as many as the column says: it tells of other "
            "questions, not of other seeds."
        )

    def show(self, console: Console) -> None:
        """The tables and what failed, on the screen."""
        settings, arms, paired = self._tables()
        wide = RichConsole(file=console.rich.file, width=max(console.rich.width, _WIDTH))
        if settings.rows:
            wide.print(_rich(settings, "What differs between the arms"))
        if arms.rows:
            wide.print(_rich(arms, "Held-out questions after the last iteration"))
            console.say(self.note_on_arms())
        by_iteration = iterations_table(self.comparison, self.results)
        if by_iteration.rows:
            wide.print(_rich(by_iteration, "By iteration"))
        if paired.rows:
            wide.print(_rich(paired, "Differences to the first arm"))
            console.say(self.note_on_pairs())
        for failure in self.failures:
            console.say(f"failed: {failure.run.title}: {failure.error} (log: {failure.run.log})")
        console.say(f"\nreport: {self.comparison.output / 'report.md'}, and as a page report.html")


def _rich(table: Table, title: str) -> RichTable:
    shown = RichTable(box=box.SIMPLE_HEAD, title=title)
    for i, heading in enumerate(table.headings):
        shown.add_column(heading, justify="right" if i else "left")
    for row in table.rows:
        shown.add_row(*map(escape, row))
    return shown


def results_csv(comparison: Comparison, results: Sequence[Result]) -> str:
    """A row an arm, seed and evaluation: its keys and what it took so far."""
    order = {arm.name: i for i, arm in enumerate(comparison.arms)}
    rows = [
        {
            "arm": result.arm,
            "seed": result.seed,
            **summary,
            "selections_drawn": drawn,
            "train_seconds": seconds,
        }
        for result in sorted(results, key=lambda r: (order[r.arm], comparison.seeds.index(r.seed)))
        for summary, drawn, seconds in zip(
            result.evaluations, result.selections, result.seconds, strict=True
        )
    ]
    text = io.StringIO()
    if rows:
        keys = list(dict.fromkeys(key for row in rows for key in row))
        writer = csv.DictWriter(text, keys, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()
