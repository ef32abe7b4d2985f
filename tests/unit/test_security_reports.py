"""What comes from data stays text in a report."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest

from dro_rl.tracking.report import write_report
from tests.made_runs import make_run, question

pytestmark = pytest.mark.unit


HOSTILE = "</script><script>alert(1)</script><!-- <img src=x onerror=alert(1)> ]]> &lt; {{data}}"


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, int]] = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, len(attrs)))


def _tags(page: str) -> list[tuple[str, int]]:
    parser = _Tags()
    parser.feed(page)
    return parser.found


def test_no_text_from_data_becomes_part_of_a_report(tmp_path):
    pages = []
    for name, text in (("plain", "Where was it?"), ("hostile", HOSTILE)):
        run = make_run(tmp_path / name, [question(1, text)])
        evaluation = run.path / "evaluation" / "iteration-0000.jsonl"
        rows = [json.loads(line) | {"answer": text} for line in evaluation.open()]
        evaluation.write_text("".join(json.dumps(row) + "\n" for row in rows))
        recipe = run.path / "recipe.yaml"
        recipe.write_text(recipe.read_text().replace("model: m", f"model: {json.dumps(text)}"))
        write_report([run], tmp_path / "report.html")
        pages.append((tmp_path / "report.html").read_text())
    assert _tags(pages[0]) == _tags(pages[1])
    assert "alert(1)" in pages[1]  # it is there, as text
