"""A run's metrics in dashboards, as they come; metrics.jsonl stays the record.

A dashboard gets a row a step, under the names of metrics.jsonl. The row of an iteration joins that
of its last step, so that steps only rise, and the warm start's evaluation is step 0. When a run is
resumed, a dashboard gets first what it lacks; steps that it has are not sent again.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from dro_rl.errors import UserError
from dro_rl.recipe import Recipe
from dro_rl.redaction import without_secrets
from dro_rl.tracking.dashboards import CHECKS, OPEN, Dashboard
from dro_rl.tracking.run_directory import RunDirectory

Say = Callable[[str], object]
_SLOW = 5.0  # seconds: the training waits for a row to be taken
_SLOW_ROWS = 3  # in a row, after which a dashboard is left


def check_trackers(recipe: Recipe) -> None:
    """Refuse a run whose dashboards are not there, before it starts.

    Raises:
        UserError: names what is missing and how to get it.
    """
    for name in recipe.tracking.trackers:
        if find_spec(name) is None:
            raise UserError(
                f"tracking.trackers: {name} is not installed: pip install {name}, or take it off "
                "the list (tracking.trackers=[] logs to metrics.jsonl alone)"
            )
        try:
            CHECKS[name]()
        except UserError:
            raise
        except Exception as error:  # a library's own, of many kinds
            raise UserError(
                f"tracking.trackers: {name} cannot be used: {without_secrets(str(error))}: mend "
                "that, or take it off the list"
            ) from error


@contextmanager
def following(recipe: Recipe, run: RunDirectory, say: Say) -> Iterator[None]:
    """Within the block, the recipe's dashboards get every row of the run's metrics.

    A dashboard that fails, or takes long again and again, is told once and left, for it must not
    end a run of days, nor slow it down.
    """
    copies = _Copies(recipe, run, say)
    for row in run.history():
        copies.take(row)
    run.followers.append(copies.take)
    done = False
    try:
        yield
        done = True
    finally:
        run.followers.remove(copies.take)
        copies.close(done)


class _Copies:
    """The dashboards that are open, and the row that may still grow."""

    def __init__(self, recipe: Recipe, run: RunDirectory, say: Say) -> None:
        self.say, self.dashboards, self.growing = say, dict[str, Dashboard](), dict[str, Any]()
        self.slow = Counter[str]()
        for name in recipe.tracking.trackers:
            try:
                self.dashboards[name] = OPEN[name](recipe, run)
            except Exception as error:  # a library's own, of many kinds
                self._lost(name, error)

    def take(self, row: Mapping[str, Any]) -> None:
        """A row of metrics.jsonl."""
        if "step" in row:
            self._send()
        self.growing |= row
        if row.get("step", 0) == 0:
            self._send()

    def _send(self) -> None:
        if "step" not in self.growing:
            return
        step = self.growing.pop("step")
        numbers = {k: float(v) for k, v in self.growing.items() if isinstance(v, int | float)}
        self.growing = {}
        for name, dashboard in [*self.dashboards.items()]:
            if step > dashboard.last:
                self._guard(name, lambda n=name: self._log(n, numbers, step))

    def _log(self, name: str, numbers: Mapping[str, float], step: int) -> None:
        start = time.monotonic()
        self.dashboards[name].log(numbers, step)
        self.slow[name] = self.slow[name] + 1 if time.monotonic() - start > _SLOW else 0
        if self.slow[name] == _SLOW_ROWS:
            raise TimeoutError(f"each of the last {_SLOW_ROWS} rows took it over {_SLOW:.0f} s")

    def close(self, done: bool) -> None:
        """Tell all; `done` says whether the run has done its iterations."""
        for name, dashboard in [*self.dashboards.items()]:
            self._guard(name, lambda d=dashboard: d.close(done))

    def _guard(self, name: str, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as error:  # a library's own, of many kinds
            del self.dashboards[name]
            self._lost(name, error)

    def _lost(self, name: str, error: Exception) -> None:
        self.say(
            f"warning: tracking.trackers: {name} failed and gets nothing more until the run is "
            f"resumed; metrics.jsonl has it all: {without_secrets(str(error)) or type(error)}"
        )
