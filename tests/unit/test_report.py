"""What report.html holds, without a browser."""

import base64
import gzip
import json
import re
from dataclasses import replace

import pytest

from dro_rl.errors import UserError
from dro_rl.tracking import browsing
from dro_rl.tracking.report import LiveReport, write_report
from tests.made_runs import make_run, question

pytestmark = pytest.mark.unit

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> {{script}} \u2028"


def data(page: str) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    return json.loads(found[1])


def block(page: str, name: str) -> dict:
    found = re.search(rf'<script type="text/plain" id="{name}">(.*?)</script>', page, re.S)
    return json.loads(gzip.decompress(base64.b64decode(found[1])))


@pytest.fixture
def page(tmp_path):
    run = make_run(tmp_path / "run", [question(i) for i in range(5)])
    write_report([run], tmp_path / "report.html")
    return (tmp_path / "report.html").read_text()


def test_the_headline_is_before_and_after_with_an_interval(page):
    (run,) = data(page)["runs"]
    rows = {row["key"]: row for row in run["headline"]}
    assert (rows["em"]["before"], rows["em"]["after"], rows["em"]["change"]) == (0, 1, 1)
    assert rows["em"]["low"] == rows["em"]["high"] == 1  # every question changed alike
    assert rows["bound"]["change"] == pytest.approx(2 / 3)
    assert [e["iteration"] for e in run["evaluations"]] == [0, 1, 2]


def test_where_the_selector_moved(page):
    (run,) = data(page)["runs"]
    assert [m["changed"] for m in run["movement"]] == [0, 1, 1]
    assert [m["first"] for m in run["movement"]] == [[0, 1], [1], [1]]
    (first, last) = run["weights"]
    assert sum(first["counts"]) == 15 and first["counts"][0] == 5 and first["edges"][-1] == 1
    assert last["iteration"] == 2


def test_held_out_rollouts_have_a_view_an_evaluation(page):
    found = block(page, "held-out-0")
    assert len(found["questions"]) == 5 and found["complete"]
    views = found["questions"][3]["views"]
    assert [v["iteration"] for v in views] == [0, 1, 2]
    assert [v["greedy"] for v in views] == [[1, 2], [0], [0]]
    assert [s["weight"] for s in views[0]["samples"]] == [0.5, 0.5]
    number, gold, score = views[0]["candidates"][0]
    assert found["documents"][number] == ["Title 3.0", "Text 0"] and (gold, score) == (1, 0.5)


def test_training_rollouts_say_what_was_drawn(page):
    found = block(page, "training-0")
    question = found["questions"][0]
    assert [v["iteration"] for v in question["views"]] == [1, 2]
    good, _, bad = question["views"][0]["samples"]
    assert (good["text"], good["log_reward"], good["weight"]) == ("[1]", -0.5, 0.5)
    assert bad["malformed"] and bad["log_reward"] is None  # -inf, which JSON lacks


def test_a_page_holds_so_many_questions_and_says_if_there_are_more(tmp_path, monkeypatch):
    monkeypatch.setattr(browsing, "_QUESTIONS", 3)
    run = make_run(tmp_path / "run", [question(i) for i in range(5)])
    write_report([run], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    for name in ("held-out-0", "training-0"):
        found = block(page, name)
        assert len(found["questions"]) == 3 and not found["complete"]
        assert len(found["documents"]) == 9  # those of questions left out are left out too


def test_a_question_that_comes_twice_in_an_iteration_keeps_its_rollouts_apart(tmp_path):
    once = question(1)
    again = replace(once, candidates=once.candidates[::-1])
    run = make_run(tmp_path / "run", [once, again], iterations=1)
    write_report([run], tmp_path / "report.html")
    (shown,) = block((tmp_path / "report.html").read_text(), "training-0")["questions"]
    assert [len(v["samples"]) for v in shown["views"]] == [3, 3]
    assert sorted([gold for _, gold, _ in v["candidates"]] for v in shown["views"]) == [
        [0, 0, 1],
        [1, 0, 0],
    ]


def test_a_run_of_an_earlier_version_goes_on_without_a_report(tmp_path):
    run = make_run(tmp_path / "run", [question(1)])
    (run.path / "evaluation" / "questions.parquet").unlink()
    with pytest.raises(UserError, match="begun by a version that kept no candidates"):
        write_report([run], tmp_path / "report.html")
    LiveReport(run).refresh()
    assert not (run.path / "report.html").exists()


def test_iterations_that_were_not_evaluated_leave_gaps(tmp_path):
    run = make_run(tmp_path / "run", [question(1)], iterations=5, every=2)
    write_report([run], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    (shown,) = data(page)["runs"]
    assert [e["iteration"] for e in shown["evaluations"]] == [0, 2, 4, 5]
    assert [m["iteration"] for m in shown["movement"]] == [0, 2, 4, 5]
    assert [w["iteration"] for w in shown["weights"]] == [1, 2, 3, 4, 5]
    assert [row["after"] for row in shown["headline"] if row["key"] == "bound"] == [-1 / 6]
    (held_out,), (trained,) = (
        block(page, f"{name}-0")["questions"] for name in ("held-out", "training")
    )
    assert [(v["iteration"], v["bound"]) for v in held_out["views"]] == [
        *((0, -1.0), (2, -0.3333), (4, -0.2), (5, -0.1667))
    ]
    assert [v["iteration"] for v in trained["views"]] == [1, 2, 3, 4, 5]


def test_a_torn_last_row_of_metrics_is_left_out(tmp_path):
    run = make_run(tmp_path / "run", [question(1)])
    write_report([run], tmp_path / "whole.html")
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 3, "st')
    write_report([run], tmp_path / "torn.html")
    assert (tmp_path / "torn.html").read_text() == (tmp_path / "whole.html").read_text()


def test_text_from_data_cannot_end_a_script(tmp_path):
    run = make_run(tmp_path / HOSTILE.replace("/", "_"), [question(1, HOSTILE)])
    write_report([run], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "<script>alert(1)" not in page and "<img src=x" not in page
    assert page.count("</script>") == 4  # data, two blocks, the script
    assert block(page, "held-out-0")["questions"][0]["question"] == HOSTILE


def test_the_page_allows_its_own_script_alone(page):
    policy = re.search(r'Content-Security-Policy" content="(.*?)"', page)[1]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy and "http" not in policy


def test_equal_runs_give_equal_pages(tmp_path):
    for name in ("a", "b"):
        run = make_run(tmp_path / name / "run", [question(1)])
        text = (run.path / "recipe.yaml").read_text().replace(str(run.path), "run")
        (run.path / "recipe.yaml").write_text(text)
        write_report([run], tmp_path / f"{name}.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_several_runs_are_named_by_what_tells_them_apart(tmp_path):
    runs = [make_run(tmp_path / "dro" / f"seed-{i}", [question(1)], 1) for i in (0, 1)]
    write_report(runs, tmp_path / "both.html")
    page = (tmp_path / "both.html").read_text()
    assert data(page)["title"] == "2 runs"
    assert [run["name"] for run in data(page)["runs"]] == ["seed-0", "seed-1"]
    assert len(block(page, "training-1")["questions"]) == 1


def test_a_run_that_has_just_begun(tmp_path):
    run = make_run(tmp_path / "run", [question(1)], iterations=0)
    write_report([run], tmp_path / "report.html")
    (shown,) = data((tmp_path / "report.html").read_text())["runs"]
    assert "change" not in shown["headline"][0] and shown["weights"] == []


def test_a_run_without_evaluation_is_refused(tmp_path):
    run = make_run(tmp_path / "run", [question(1)], iterations=0)
    (run.path / "evaluation" / "iteration-0000.json").unlink()
    with pytest.raises(UserError, match="has no evaluation yet"):
        write_report([run], tmp_path / "report.html")
    with pytest.raises(UserError, match="cannot be written"):
        write_report([make_run(tmp_path / "two", [question(1)])], tmp_path / "none" / "report.html")
    assert not (tmp_path / "report.html").exists()
