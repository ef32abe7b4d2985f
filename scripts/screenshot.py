"""Takes the picture of a report that README shows: the rollout browser, in its light colours.

    .venv/bin/dro-rl train recipes/demo.yaml
    .venv/bin/python scripts/screenshot.py runs/demo/report.html docs/images/report.png

Needs Chromium (Debian: apt install chromium).
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from playwright.sync_api import ViewportSize, sync_playwright

SCREEN = ViewportSize(width=1200, height=900)
QUESTION = "Name the Kovac hometown and the Jansen drink."  # the warm start believes the rumour
ITERATION = "iteration 1"  # where selections still differ, and their weights with them


def take(report: Path, picture: Path) -> None:
    """A PNG of the rollouts, at a question whose answer was wrong at first and right at last."""
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    picture.parent.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport=SCREEN, color_scheme="light")
        page.goto(report.absolute().as_uri())
        page.locator(".questions button").first.wait_for()
        page.get_by_label("Show").select_option("learned")
        page.locator(".questions button", has_text=QUESTION).click()
        page.get_by_label("Iteration", exact=True).select_option(label=ITERATION)
        page.evaluate("document.activeElement.blur()")
        page.locator("#rollouts").evaluate("section => section.scrollIntoView()")
        page.screenshot(path=picture)
        browser.close()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    take(Path(sys.argv[1]), Path(sys.argv[2]))
