"""The console: what is on the screen, or in a file in its place."""

import io
import time

import pytest

from dro_rl.errors import UserError
from dro_rl.tracking import console as console_module
from dro_rl.tracking.console import Console

pytestmark = pytest.mark.unit


@pytest.fixture
def piped(monkeypatch):
    """A console whose output goes to a file, and that file."""
    from rich.console import Console as RichConsole

    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    file = io.StringIO()
    return Console(RichConsole(file=file, highlight=False, soft_wrap=True)), file


def summary(iteration: int, **changes) -> dict:
    figures = {
        "iteration": iteration,
        "em": 0.125,
        "f1": 0.25,
        "recall@1": 0.5,
        "recall@3": 0.625,
        "recall@5": 1.0,
        "gold_recall": 0.75,
        "bound": -3.14159,
        "bound_se": 0.0123,
        "effective_sample_size": 2.5,
        "malformed": 0.01,
    }
    return figures | changes


@pytest.mark.parametrize(
    "text",
    [
        "[3] > [1]",
        "[bold]not a style[/bold] [/]",
        "ends with \\",
        "a:smile:b http://localhost:8265/#/",
        "long " * 80,
    ],
)
def test_text_reaches_a_file_as_it_is(piped, text):
    console, file = piped
    console.say(text)
    assert file.getvalue() == text + "\n"


def test_the_table_has_a_row_an_iteration_and_no_escape_codes(piped):
    console, file = piped
    console.evaluations([summary(0), summary(1, bound=None)])
    lines = file.getvalue().splitlines()
    assert "\x1b" not in file.getvalue() and "…" not in file.getvalue()
    first = next(line for line in lines if "warm start" in line)
    assert first.split()[2:] == "12.5 25.0 50.0 62.5 100.0 75.0 -3.142 0.012 2.50 1.0".split()
    second = next(line for line in lines if line.split()[:1] == ["1"])
    assert second.split()[7] == "-"


def test_progress_compares_the_warm_start_with_now(piped):
    console, file = piped
    console.progress([summary(0), summary(1, em=0.2), summary(2, em=0.5)])
    assert "iteration 2: EM 12.5 -> 50.0, F1 25.0 -> 25.0" in file.getvalue()


def test_progress_where_a_bound_was_not_finite(piped):
    console, file = piped
    console.progress([summary(0, bound=None), summary(1)])
    assert "iteration 1: EM" in file.getvalue()


def test_a_stage_shows_lines_while_it_works_and_its_time_at_the_end(piped, monkeypatch):
    """Also while nothing comes back: an engine's call may take minutes."""
    console, file = piped
    monkeypatch.setattr(console_module, "LINE_EVERY", 0.2)
    with console.stage("iteration 1/2: rollout", 4, "questions") as advance:
        time.sleep(0.5)
        advance(3)
        time.sleep(0.5)
        advance(1)
    *lines, last = file.getvalue().splitlines()
    assert lines[0] == "iteration 1/2: rollout: 0/4 questions after 0 s"
    assert any("rollout: 3/4 questions after 1 s, about 0 s left" in line for line in lines)
    assert last.startswith("iteration 1/2: rollout: 4 questions in ")


def test_a_stage_that_fails_says_no_more(piped, monkeypatch):
    console, file = piped
    monkeypatch.setattr(console_module, "LINE_EVERY", 0.05)
    with pytest.raises(UserError), console.stage("rollout", 4, "questions"):
        raise UserError("no")
    before = file.getvalue()
    time.sleep(0.2)
    assert file.getvalue() == before


def test_a_stage_that_fails_does_not_claim_to_be_done(piped):
    console, file = piped
    with pytest.raises(ZeroDivisionError), console.stage("learn", 2, "questions"):
        raise ZeroDivisionError
    assert "2 questions in" not in file.getvalue()


def test_a_stage_on_a_terminal_survives_titles_with_brackets():
    from rich.console import Console as RichConsole

    file = io.StringIO()
    rich = RichConsole(file=file, force_terminal=True, width=80, soft_wrap=True)
    with Console(rich).stage("sample [3] > [1]", 2, "questions") as advance:
        advance(2)
    assert "sample [3] > [1]" in file.getvalue()


def test_examples_show_changed_selections_first_and_mark_gold(piped):
    console, file = piped

    def row(question: str, title: str, gold: bool, answer: str) -> dict:
        document = {"title": title, "text": "text [1]", "is_gold": gold}
        return {"question": question, "answers": ["Lyon"], "selected": [document], "answer": answer}

    before = [row("same?", "A", False, "x"), row("changed?", "A", False, "x")]
    after = [row("same?", "A", False, "y"), row("changed?", "B", True, "Lyon")]
    console.examples(before, after)
    text = file.getvalue()
    assert text.index("changed?") < text.index("same?")
    assert "*B: text [1]" in text and "'Lyon'" in text
    after[0]["selected"] = []
    console.examples(before, after)
    assert "no document" in file.getvalue()
