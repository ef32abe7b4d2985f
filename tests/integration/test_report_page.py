"""report.html in a real browser: it draws, filters, can be used without a mouse, and is silent."""

import os
import shutil
import time
from pathlib import Path

import pytest
from made_runs import make_run, question
from playwright.sync_api import expect, sync_playwright

from dro_rl.tracking.report import write_report

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt install chromium)"),
]

HOSTILE = "<img src=x onerror=\"document.title='hacked'\"></script><script>alert(1)</script> why?"


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    names = ["Where was it?", HOSTILE, "Who went to Lyon?"]
    runs = [
        make_run(folder / f"seed-{i}", [question(n, text) for n, text in enumerate(names)])
        for i in (0, 1)
    ]
    write_report(runs[:1], folder / "one.html")
    write_report(runs, folder / "two.html")
    return folder


@pytest.fixture
def open_page(browser):
    """Opens a page; afterwards it must have asked nobody for anything and reported no error."""
    problems, requests, contexts = [], [], []

    def open_page(path: Path, **context):
        contexts.append(browser.new_context(**context))
        page = contexts[-1].new_page()
        page.on("console", lambda m: problems.append(m.text) if m.type != "log" else None)
        page.on("pageerror", lambda e: problems.append(str(e)))
        page.on("dialog", lambda d: (problems.append(d.message), d.dismiss()))
        page.on("request", lambda r: requests.append(r.url))
        page.goto(path.as_uri())
        page.locator(".questions button").first.wait_for()
        return page

    yield open_page
    assert problems == []
    assert {url.partition(":")[0] for url in requests} <= {"file", "data", "blob"}
    assert sum(url.startswith("file:") for url in requests) == len(contexts)
    for context in contexts:
        context.close()


def test_it_draws_every_section(open_page, folder):
    page = open_page(folder / "one.html")
    assert page.locator("h1").inner_text() == "seed-0"
    headline = page.locator("#summary table")
    assert headline.locator("tr", has_text="EM").inner_text().split() == [
        *("EM", "[%]", "0.0", "100.0", "+100.0", "+100.0", "to", "+100.0"),
    ]
    titles = page.locator("#curves figcaption").all_inner_texts()
    assert "Exact match [%]" in titles and "Selector loss" in titles
    assert page.locator("#selector figure").count() == 4
    assert "learn" in page.locator("#time table").first.inner_text()
    assert "1.5" in page.locator("#time table").last.inner_text()
    assert "kind: facts" in page.locator("#recipe pre").inner_text()
    details = page.locator("#curves figure", has_text="Exact match").locator("details")
    details.locator("summary").click()
    assert details.locator("tbody tr").count() == 3  # the figures of a curve, as a table


def test_a_question_by_iteration(open_page, folder):
    page = open_page(folder / "one.html")
    detail = page.locator(".detail")
    assert "Lyon – right" in detail.inner_text()
    detail.get_by_role("button", name="earlier").click()
    detail.get_by_role("button", name="earlier").click()
    assert "in Paris – F1 0.0" in detail.inner_text()
    assert detail.get_by_role("button", name="earlier").is_disabled()
    assert page.locator(".candidates li.picked").count() == 2
    page.locator("label", has_text="Questions").locator("select").select_option("training")
    page.locator(".mark", has_text="malformed: nonsense").wait_for()
    assert "2×" in detail.inner_text() and "−∞" in detail.inner_text()


def test_search_and_filters(open_page, folder):
    page = open_page(folder / "one.html")
    status = page.locator("#rollouts [role=status]")
    page.get_by_label("Search").fill("lyon went")
    expect(page.locator(".questions li")).to_have_count(1)
    assert status.inner_text() == "1 of 3 questions"
    page.get_by_label("Search").fill("")
    expect(page.locator(".questions li")).to_have_count(3)
    page.get_by_label("Show").select_option("wrong")
    assert status.inner_text() == "0 of 3 questions"
    page.get_by_label("Show").select_option("learned")
    assert status.inner_text() == "3 of 3 questions"


def test_the_keyboard_is_enough(open_page, folder):
    page = open_page(folder / "one.html")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
    page.locator(".questions button").first.focus()
    page.keyboard.press("ArrowDown")
    assert page.locator(".questions [aria-current]").inner_text().startswith(HOSTILE[:20])
    assert page.evaluate("document.activeElement.getAttribute('aria-current')") == "true"


def test_hostile_text_stays_text(open_page, folder):
    page = open_page(folder / "one.html")
    page.locator(".questions button").nth(1).click()
    assert page.locator(".detail h3").first.inner_text() == HOSTILE
    assert page.locator("img").count() == 0
    assert page.title() == "seed-0 · dro_rl"


def test_several_runs_side_by_side(open_page, folder):
    page = open_page(folder / "two.html")
    assert page.locator("#summary h3").all_inner_texts() == ["seed-0", "seed-1"]
    curve = page.get_by_role("img", name="Exact match")
    assert "seed-1: from 0 to 100" in curve.get_attribute("aria-label")
    page.get_by_label("Run").select_option("1")
    page.locator(".questions button").first.wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_reads_well_everywhere(open_page, folder, scheme, width):
    from axe_playwright_python.sync_playwright import Axe

    page = open_page(
        folder / "two.html", color_scheme=scheme, viewport={"width": width, "height": 800}
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= width  # no sideways scrolling
    # axe-core is injected, which the page's own policy forbids scripts to be: not so Playwright's.
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_two_thousand_questions_stay_smooth(open_page, tmp_path):
    run = make_run(tmp_path / "run", [question(i, f"Where was it {i}?") for i in range(2000)])
    write_report([run], tmp_path / "report.html")
    start = time.monotonic()
    page = open_page(tmp_path / "report.html")
    assert time.monotonic() - start < 15  # seconds, on a busy machine
    page.get_by_label("Search").fill("it 1234?")
    expect(page.locator(".questions li")).to_have_count(1)
    page.get_by_label("Search").fill("")
    expect(page.locator(".questions li")).to_have_count(2000)
    milliseconds = page.evaluate(
        """() => { const start = performance.now();
        document.querySelectorAll('.questions button')[1500].click();
        document.body.offsetHeight; return performance.now() - start; }"""
    )
    assert milliseconds < 500
