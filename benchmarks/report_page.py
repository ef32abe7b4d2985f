"""report.html with 2,000 questions in Chromium: how large, how fast, and who can read it.

    python benchmarks/report_page.py

The questions have 20 candidates of 600 characters, drawn from 20,000 passages, and 8 samples in
each of 5 iterations, held out and trained on alike. Words are made up, as frequent as real ones.
Seconds are those that the process, or the browser's for the page, has computed: what else the
machine does changes them little. Then axe-core and the page's width, on a phone and a laptop,
light and dark. Writes results/report_page.json and .md beside this file, and exits with 1 where a
limit is exceeded. Needs Chromium (Debian: apt install chromium).
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, ViewportSize, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.timing import table, write_results  # noqa: E402
from dro_rl.records import Document, Example  # noqa: E402
from dro_rl.tracking.report import write_report  # noqa: E402
from tests.made_runs import make_run  # noqa: E402

QUESTIONS, CANDIDATES, PASSAGES, ITERATIONS, SAMPLES = 2000, 20, 20_000, 5, 8
LIMITS = {"the file [MiB]": 16.0, "until the questions are listed [s]": 3.0}
LIMITS |= {"opening one of them [s]": 0.1, "a search among all [s]": 0.3}
WIDTHS = {"phone": 390, "laptop": 1280}
Scheme = Literal["light", "dark"]
SCHEMES: tuple[Scheme, ...] = ("light", "dark")
OPEN = "document.querySelectorAll('.questions button')[1500].click(); document.body.offsetHeight"
SEARCH = """async () => {
  const field = document.querySelector('input[type=search]');
  field.value = 'number 1234?';
  field.dispatchEvent(new Event('input'));
  while (document.querySelectorAll('.questions li').length != 1)
    await new Promise((again) => setTimeout(again, 50)); }"""


def examples() -> list[Example]:
    """Questions whose candidates are other questions' candidates too, as in one corpus."""
    draw = random.Random(0)
    letters = "etaoinshrdlu"
    words = ["".join(draw.choices(letters, k=draw.randint(2, 9))) for _ in range(20_000)]
    frequency = [1 / (rank + 1) for rank in range(len(words))]
    texts = [" ".join(draw.choices(words, frequency, k=110))[:600] for _ in range(PASSAGES)]
    found = []
    for number in range(QUESTIONS):
        passages = draw.sample(range(PASSAGES), CANDIDATES)
        documents = tuple(
            Document(f"Passage {p}", texts[p], is_gold=place == 0)
            for place, p in enumerate(passages)
        )
        scores = tuple(1 / (place + 1) for place in range(CANDIDATES))
        text = f"Where was number {number}?"
        found.append(Example(f"q{number}", text, ("Lyon",), documents, scores=scores))
    return found


def speed(browser: Browser, path: Path) -> dict[str, float]:
    """Of the page as it is first opened."""
    shown = browser.new_page()
    session = shown.context.new_cdp_session(shown)
    session.send("Performance.enable")

    def seconds() -> float:
        told = session.send("Performance.getMetrics")["metrics"]
        return next(m["value"] for m in told if m["name"] == "ProcessTime")

    shown.goto(path.as_uri())
    shown.locator(".questions button").first.wait_for()
    listed = seconds()
    shown.evaluate(OPEN)
    opened = seconds()
    shown.evaluate(SEARCH)
    searched = seconds()
    shown.close()
    return {
        "until the questions are listed [s]": listed,
        "opening one of them [s]": opened - listed,
        "a search among all [s]": searched - opened,
    }


def reading(browser: Browser, path: Path) -> list[list[str]]:
    """Of each screen: what axe-core finds, and the pixels by which the page is too wide."""
    rows = []
    for screen, width in WIDTHS.items():
        for scheme in SCHEMES:
            with page(browser, path, width, scheme) as shown:
                wide = shown.evaluate("document.documentElement.scrollWidth") - width
                found = Axe().run(shown).violations_count
            rows.append([f"{screen}, {width} px, {scheme}", str(found), str(max(0, wide))])
    return rows


@contextmanager
def page(browser: Browser, path: Path, width: int, scheme: Scheme) -> Iterator[Page]:
    screen = ViewportSize(width=width, height=800)
    context = browser.new_context(viewport=screen, color_scheme=scheme)
    shown = context.new_page()
    shown.goto(path.as_uri())
    shown.locator(".questions button").first.wait_for()
    yield shown
    context.close()


def main() -> None:
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        run = make_run(Path(folder) / "run", examples(), ITERATIONS, SAMPLES - 1)
        path = Path(folder) / "report.html"
        start = time.process_time()
        write_report([run], path)
        figures = {"writing it [s]": time.process_time() - start}
        figures["the file [MiB]"] = path.stat().st_size / 2**20
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        figures |= speed(browser, path)
        screens = reading(browser, path)
        browser.close()
    rows = [[name, f"{f:.2f}", f"{LIMITS.get(name, '')}"] for name, f in figures.items()]
    write_results(
        "report_page",
        {"figures": figures, "limits": LIMITS, "screens": screens},
        [table(["", "figure", "limit"], rows), table(["screen", "axe-core", "px"], screens)],
        f"{QUESTIONS} questions, {CANDIDATES} candidates, {ITERATIONS} iterations of {SAMPLES} "
        "samples; seconds of computing; violations that axe-core finds, and pixels by which the "
        "page is too wide",
    )
    exceeded = any(figures[name] > limit for name, limit in LIMITS.items())
    if exceeded or any(row[1:] != ["0", "0"] for row in screens):
        sys.exit(1)


if __name__ == "__main__":
    main()
