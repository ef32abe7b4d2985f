"""report.html in a real browser: it draws, filters, can be used without a mouse, and is silent."""

import os
import shutil
import time
from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright

from dro_rl.tracking.pages import page
from dro_rl.tracking.report import write_report
from tests.made_runs import iterate, make_run, question

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

    def open_page(path: Path, drawn: str = ".questions button", **context):
        contexts.append(browser.new_context(**context))
        opened = contexts[-1].new_page()
        opened.on("console", lambda m: problems.append(m.text) if m.type != "log" else None)
        opened.on("pageerror", lambda e: problems.append(str(e)))
        opened.on("dialog", lambda d: (problems.append(d.message), d.dismiss()))
        opened.on("request", lambda r: requests.append(r.url))
        opened.goto(path.as_uri())
        opened.locator(drawn).first.wait_for()
        return opened

    yield open_page
    assert problems == []
    assert {url.partition(":")[0] for url in requests} <= {"file", "data", "blob"}
    assert sum(url.startswith("file:") for url in requests) == len(contexts)
    for context in contexts:
        context.close()


def test_it_draws_every_section(open_page, folder):
    shown = open_page(folder / "one.html")
    assert shown.locator("h1").inner_text() == "seed-0"
    headline = shown.locator("#summary table")
    assert headline.locator("tr", has_text="EM").inner_text().split() == [
        *("EM", "[%]", "0.0", "100.0", "+100.0", "+100.0", "to", "+100.0"),
    ]
    titles = shown.locator("#curves figcaption").all_inner_texts()
    assert "Exact match [%]" in titles and "Selector loss" in titles
    assert shown.locator("#selector figure").count() == 4
    assert "learn" in shown.locator("#time table").first.inner_text()
    assert "1.5" in shown.locator("#time table").last.inner_text()
    assert "kind: facts" in shown.locator("#recipe pre").inner_text()
    details = shown.locator("#curves figure", has_text="Exact match").locator("details")
    details.locator("summary").click()
    assert details.locator("tbody tr").count() == 3  # the figures of a curve, as a table


def test_a_question_by_iteration(open_page, folder):
    shown = open_page(folder / "one.html")
    detail = shown.locator(".detail")
    assert "Lyon – right" in detail.inner_text()
    detail.get_by_role("button", name="earlier").click()
    detail.get_by_role("button", name="earlier").click()
    assert "in Paris – F1 0.0" in detail.inner_text()
    assert detail.get_by_role("button", name="earlier").is_disabled()
    assert shown.locator(".candidates li.picked").count() == 2
    shown.locator("label", has_text="Questions").locator("select").select_option("training")
    shown.locator(".mark", has_text="malformed: nonsense").wait_for()
    assert "2×" in detail.inner_text() and "−∞" in detail.inner_text()
    assert "log-reward" in detail.inner_text() and "DRO's weight" not in detail.inner_text()
    shown.get_by_label("Show").select_option("malformed")
    assert shown.locator("#rollouts [role=status]").inner_text() == "3 of 3 questions"
    assert shown.locator("option[value=wrong]").is_disabled()  # training asks for no answers


def test_iterations_that_were_not_evaluated_leave_gaps(open_page, tmp_path):
    """Beside a run that was always evaluated."""
    runs = [make_run(tmp_path / f"every-{n}", [question(1)], 5, every=n) for n in (2, 1)]
    write_report(runs, tmp_path / "report.html")
    shown = open_page(tmp_path / "report.html")
    assert "warm start and iteration 5" in shown.locator("#summary caption").first.inner_text()
    details = shown.locator("#curves figure", has_text="Bound").locator("details")
    details.locator("summary").click()
    rows = [row.split() for row in details.locator("tbody tr").all_inner_texts()]
    assert [row[:2] for row in rows] == [
        *(["0", "-1"], ["1", "–"], ["2", "-0.3333"], ["3", "–"], ["4", "-0.2"], ["5", "-0.1667"])
    ]
    choice = shown.locator(".detail").get_by_label("Iteration")
    names = ["warm start", "iteration 2", "iteration 4", "iteration 5"]
    assert choice.locator("option").all_inner_texts() == names
    shown.locator(".detail").get_by_role("button", name="earlier").click()
    assert choice.locator("option:checked").inner_text() == "iteration 4"
    assert "bound -0.2 nats" in shown.locator(".detail").inner_text()


def test_the_next_question_is_shown_at_the_same_iteration(open_page, tmp_path):
    run = make_run(tmp_path / "run", [question(0, "First?")], 1)
    for iteration in (2, 3):
        iterate(run, [question(0, "First?"), question(1, "Second?")], iteration)
    write_report([run], tmp_path / "report.html")
    shown = open_page(tmp_path / "report.html")
    shown.locator("label", has_text="Questions").locator("select").select_option("training")
    shown.locator(".mark").first.wait_for()
    shown.locator(".detail").get_by_role("button", name="earlier").click()
    chosen = shown.locator(".detail").get_by_label("Iteration").locator("option:checked")
    assert chosen.inner_text() == "iteration 2"
    shown.locator(".questions button", has_text="Second?").click()
    assert shown.locator(".detail h3").first.inner_text() == "Second?"
    assert chosen.inner_text() == "iteration 2"  # of which it has fewer


def test_search_and_filters(open_page, folder):
    shown = open_page(folder / "one.html")
    status = shown.locator("#rollouts [role=status]")
    shown.get_by_label("Search").fill("lyon went")
    expect(shown.locator(".questions li")).to_have_count(1)
    assert status.inner_text() == "1 of 3 questions"
    shown.get_by_label("Search").fill("")
    expect(shown.locator(".questions li")).to_have_count(3)
    shown.get_by_label("Show").select_option("wrong")
    assert status.inner_text() == "0 of 3 questions"
    shown.get_by_label("Show").select_option("learned")
    assert status.inner_text() == "3 of 3 questions"


def test_the_keyboard_is_enough(open_page, folder):
    shown = open_page(folder / "one.html")
    shown.keyboard.press("Tab")
    assert shown.evaluate("document.activeElement.textContent") == "Skip to content"
    shown.locator(".questions button").first.focus()
    shown.keyboard.press("ArrowDown")
    assert shown.locator(".questions [aria-current]").inner_text().startswith(HOSTILE[:20])
    assert shown.evaluate("document.activeElement.getAttribute('aria-current')") == "true"


def test_hostile_text_stays_text(open_page, folder):
    shown = open_page(folder / "one.html")
    shown.locator(".questions button").nth(1).click()
    assert shown.locator(".detail h3").first.inner_text() == HOSTILE
    assert shown.locator("img").count() == 0
    assert shown.title() == "seed-0 · dro_rl"


def test_several_runs_side_by_side(open_page, folder):
    shown = open_page(folder / "two.html")
    assert shown.locator("#summary h3").all_inner_texts() == ["seed-0", "seed-1"]
    curve = shown.get_by_role("img", name="Exact match")
    assert "seed-1: from 0 to 100" in curve.get_attribute("aria-label")
    shown.get_by_label("Run").select_option("1")
    shown.locator(".questions button").first.wait_for()


def comparison_page() -> str:
    rows = [["dro", "2", "97.7 ± 4.0"], ["<b>grpo", "2", "89.0 ± 8.6"]]
    curve = {"selections": [0, 64], "mean": [50, 90], "low": [49, 85], "high": [51, 95]}
    data = {
        "title": "mine",
        "command": "dro-rl compare mine.yaml",
        "arms": {"headings": ["arm", "seeds", "EM"], "rows": rows},
        "differences": {
            "headings": ["arms", "seeds", "EM"],
            "rows": [["<b>grpo - dro", "2", "-8.7 [-11.3, -6.2] *"]],
        },
        "settings": {"headings": ["setting", "dro"], "rows": []},
        "notes": ["over seeds", "over questions"],
        "figures": [{"title": "EM [%]", "curves": [{"arm": r[0], **curve} for r in rows]}],
        "names": [r[0] for r in rows],
        "runs": [
            {"title": "dro seed 0", "report": "dro/seed-0/report.html", "error": None},
            {"title": "<b>grpo seed 0", "report": None, "error": "Error: too picky"},
        ],
    }
    return page("comparison", "mine", data, {})


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_of_a_comparison(open_page, tmp_path, scheme):
    from axe_playwright_python.sync_playwright import Axe

    (tmp_path / "report.html").write_text(comparison_page())
    shown = open_page(tmp_path / "report.html", "#runs a", color_scheme=scheme)
    assert shown.locator("#differences .down").inner_text() == "-8.7 [-11.3, -6.2] *"
    assert "<b>grpo: from 50 to 90" in shown.get_by_role("img").get_attribute("aria-label")
    assert shown.locator("#runs a").get_attribute("href") == "dro/seed-0/report.html"
    assert "too picky" in shown.locator("#runs").inner_text()
    found = Axe().run(shown)
    assert found.violations_count == 0, found.generate_report()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_reads_well_everywhere(open_page, folder, scheme, width):
    from axe_playwright_python.sync_playwright import Axe

    shown = open_page(
        folder / "two.html", color_scheme=scheme, viewport={"width": width, "height": 800}
    )
    assert shown.evaluate("document.documentElement.scrollWidth") <= width  # no sideways scrolling
    # axe-core is injected, which the page's own policy forbids scripts to be: not so Playwright's.
    found = Axe().run(shown)
    assert found.violations_count == 0, found.generate_report()


def test_two_thousand_questions_stay_smooth(open_page, tmp_path):
    run = make_run(tmp_path / "run", [question(i, f"Where was it {i}?") for i in range(2000)])
    write_report([run], tmp_path / "report.html")
    start = time.monotonic()
    shown = open_page(tmp_path / "report.html")
    assert time.monotonic() - start < 15  # seconds, on a busy machine
    shown.get_by_label("Search").fill("it 1234?")
    expect(shown.locator(".questions li")).to_have_count(1)
    shown.get_by_label("Search").fill("")
    expect(shown.locator(".questions li")).to_have_count(2000)
    milliseconds = shown.evaluate(
        """() => { const start = performance.now();
        document.querySelectorAll('.questions button')[1500].click();
        document.body.offsetHeight; return performance.now() - start; }"""
    )
    assert milliseconds < 500
