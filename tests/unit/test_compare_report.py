"""What a comparison reports of its runs: tables, curves, figures, the page."""

import csv
import io
import json
import re

import pytest
from rich.console import Console as RichConsole

from dro_rl.comparison import report as report_module
from dro_rl.comparison.report import Failure, Report
from dro_rl.comparison.runs import read_result, runs_of
from dro_rl.comparison.spec import Comparison, load_comparison
from dro_rl.tracking.console import Console
from tests.made_comparisons import fabricate, writer

pytestmark = pytest.mark.unit


@pytest.fixture
def write(tmp_path):
    return writer(tmp_path)


@pytest.fixture
def without_figures(monkeypatch) -> None:
    """They take longer than all else that a report has."""
    monkeypatch.setattr(report_module, "write_figures", lambda comparison, results: [])


def report_of(comparison: Comparison, failed=(), **changes) -> Report:
    """Fabricates all runs; `changes` to fabricate() by arm_seed, None for a run that is missing."""
    results, failures = [], []
    for run in runs_of(comparison):
        how = changes.get(f"{run.arm}_{run.seed}", {})
        if (run.arm, run.seed) in failed:
            failures.append(Failure(run, "ArithmeticError: too picky"))
        elif how is not None:
            if not run.folder.exists():
                fabricate(run, **how)
            results.append(read_result(run))
    report = Report(comparison, "dro-rl compare mine.yaml", results, failures, 0)
    report.write()
    return report


def text_of(report: Report) -> str:
    return (report.comparison.output / "report.md").read_text()


def row(text: str, name: str) -> list[str]:
    """Cells of a table's row."""
    (line,) = re.findall(rf"^\| {re.escape(name)} \|.*$", text, re.M)
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.usefixtures("without_figures")
def test_the_report_has_means_over_seeds_with_t_intervals(write):
    report = report_of(
        load_comparison(write()),
        plain_0={"ems": (0, 0.5, 0.5), "seconds": 3.0},
        plain_1={"ems": (0, 0.5, 1.0), "seconds": 4.0},
    )
    cells = row(text_of(report), "plain")
    # two seeds: t = 12.706, s / sqrt(2) = 25 points, 0.25 nats, 2 seconds
    assert cells[1:4] == ["2", "75.0 ± 317.7", "75.0 ± 317.7"]
    assert cells[7] == "-"  # no gold documents
    assert cells[8] == "-1.250 ± 3.177"
    assert cells[11:] == ["14 ± 25", "64"]  # 2 iterations of 2 stages, evaluation not counted


@pytest.mark.usefixtures("without_figures")
def test_figures_by_iteration_are_means_over_seeds(write):
    report = report_of(
        load_comparison(write()),
        plain_0={"ems": (0, 0.5, 0.5)},
        plain_1={"ems": (0, 0.25, 1.0)},
    )
    assert row(text_of(report), "EM, plain") == ["EM, plain", "0.0", "37.5", "75.0"]


@pytest.mark.usefixtures("without_figures")
def test_iterations_that_were_not_evaluated_leave_gaps(write):
    """Their selections and seconds count; an arm that was evaluated more often has more columns."""
    settings = {"training": {"iterations": 3}, "evaluation": {"every": 2}}
    arms = {"plain": {}, "often": {"evaluation": {"every": 1}}}
    comparison = load_comparison(write(settings=settings, arms=arms, may_differ=["evaluation"]))
    some, all_of_them = (0, None, 0.5, 1.0), (0, 0.25, 0.5, 0.75)
    report = report_of(
        comparison,
        **{f"plain_{seed}": {"ems": some} for seed in (0, 1)},
        **{f"often_{seed}": {"ems": all_of_them} for seed in (0, 1)},
    )
    text = text_of(report)
    headings = ["mean over seeds", "warm start", "1", "2", "3"]
    assert row(text, "mean over seeds") == headings
    assert row(text, "EM, plain") == ["EM, plain", "0.0", "-", "50.0", "100.0"]
    assert row(text, "EM, often") == ["EM, often", "0.0", "25.0", "50.0", "75.0"]
    assert row(text, "plain")[2] == "100.0 ± 0.0" and row(text, "plain")[-1] == "96"
    assert row(text, "often - plain")[2] == "-25.0 [-62.5, +0.0]"  # of the last evaluations
    plain = [r for r in lines_of(report) if (r["arm"], r["seed"]) == ("plain", "0")]
    assert [r["iteration"] for r in plain] == ["0", "2", "3"]
    assert [r["selections_drawn"] for r in plain] == ["0", "64", "96"]
    assert [float(r["train_seconds"]) for r in plain] == [0, 8, 12]


@pytest.mark.usefixtures("without_figures")
def test_differences_are_paired_and_marked(write):
    ems = {"ems": (0, 0, 1.0)}
    report = report_of(
        load_comparison(write()),
        **{"plain_0": {"ems": (0, 0, 0)}, "plain_1": {"ems": (0, 0, 0)}},
        **{"centred_0": ems, "centred_1": ems},
    )
    cells = row(text_of(report), "centred - plain")
    assert cells[1:3] == ["2", "+100.0 [+100.0, +100.0] *"]
    assert cells[4] == "+1.000 [+1.000, +1.000] *"
    assert "conditional on these seeds" in text_of(report)


@pytest.mark.usefixtures("without_figures")
def test_equal_arms_have_no_marked_difference(write):
    cells = row(text_of(report_of(load_comparison(write()))), "centred - plain")
    assert cells[2] == "+0.0 [+0.0, +0.0]"


@pytest.mark.usefixtures("without_figures")
def test_one_seed_has_no_interval_and_the_report_says_so(write):
    text = text_of(report_of(load_comparison(write(), ["seeds=[3]"])))
    assert row(text, "plain")[1:3] == ["1", "75.0"]
    assert "no interval where there is one seed" in text


@pytest.mark.usefixtures("without_figures")
def test_an_arm_that_lacks_a_seed_is_paired_on_those_it_has(write):
    text = text_of(report_of(load_comparison(write()), centred_1=None))
    assert row(text, "plain")[1] == "2"
    assert row(text, "centred")[1] == "1"
    assert row(text, "centred - plain")[1] == "1"


@pytest.mark.usefixtures("without_figures")
def test_failed_runs_are_named_and_kept_out_of_the_tables(write):
    failed = [("centred", 0), ("centred", 1)]
    report = report_of(load_comparison(write()), failed=failed)
    text = text_of(report)
    assert "centred seed 0: `ArithmeticError: too picky` ([log](centred/seed-0.log))" in text
    assert "| centred |" not in text.split("## Held-out")[1] and "centred - plain" not in text
    assert row(text, "plain")[1] == "2"
    assert {line["arm"] for line in lines_of(report)} == {"plain"}


@pytest.mark.usefixtures("without_figures")
def test_before_the_first_run_ends_there_is_a_report_already(write):
    comparison = load_comparison(write())
    Report(comparison, "dro-rl compare mine.yaml", [], [], 4).write()
    text = (comparison.output / "report.md").read_text()
    assert "No run has finished yet." in text and "4 runs have not finished yet" in text


@pytest.mark.usefixtures("without_figures")
def test_the_report_says_what_differs_and_how_it_was_made(write):
    text = text_of(report_of(load_comparison(write())))
    table = text.split("## Held-out")[0]
    assert row(table, "algorithm.baseline")[1:] == ["none", "uniform"]
    assert "seed" not in table.split("## What differs")[1] and "run_dir" not in table
    assert "dro-rl compare mine.yaml" in text and "- torch " in text


@pytest.mark.usefixtures("without_figures")
def test_a_setting_that_no_arm_has_a_value_of_is_no_difference(write):
    arms = {"full": {}, "adapters": {"selector": {"lora": {"rank": 4}}}}
    text = text_of(report_of(load_comparison(write(arms=arms, may_differ=["selector.lora"]))))
    assert row(text, "selector.lora.rank")[1:] == ["-", "4"]
    assert "| selector.lora |" not in text


def lines_of(report: Report) -> list[dict[str, str]]:
    text = (report.comparison.output / "results.csv").read_text()
    return list(csv.DictReader(io.StringIO(text)))


@pytest.mark.usefixtures("without_figures")
def test_results_csv_has_a_row_an_arm_seed_and_iteration(write):
    lines = lines_of(report_of(load_comparison(write()), plain_1={"ems": (0.25, 0.5)}))
    assert [(r["arm"], r["seed"], r["iteration"]) for r in lines] == [
        *(("plain", "0", i) for i in "012"),
        *(("plain", "1", i) for i in "01"),
        *(("centred", s, i) for s in "01" for i in "012"),
    ]
    assert [r["em"] for r in lines[:3]] == ["0.25", "0.5", "0.75"]
    assert [r["selections_drawn"] for r in lines[:3]] == ["0", "32", "64"]
    assert [float(r["train_seconds"]) for r in lines[:3]] == [0, 4, 8]
    assert lines[0]["gold_recall"] == ""


@pytest.mark.usefixtures("without_figures")
def test_the_page_has_the_tables_the_curves_and_the_way_to_each_run(write):
    comparison = load_comparison(write(seeds=[0, 1]))
    arm = comparison.arms[1].name
    report = report_of(comparison, failed={(arm, 1)})
    (comparison.output / arm / "seed-0" / "report.html").touch()
    report.write()
    html = (comparison.output / "report.html").read_text()
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)
    shown = json.loads(found[1])
    assert [r[0] for r in shown["arms"]["rows"]] == [a.name for a in comparison.arms]
    assert shown["differences"]["rows"] and shown["command"] == report.command
    bound = next(f for f in shown["figures"] if f["title"].startswith("bound"))
    assert len(bound["curves"]) == len(comparison.arms)
    states = {r["title"]: (r["report"], r["error"]) for r in shown["runs"]}
    assert states[f"{arm} seed 0"] == (f"{arm}/seed-0/report.html", None)
    assert states[f"{arm} seed 1"] == (None, "ArithmeticError: too picky")
    assert states[f"{comparison.arms[0].name} seed 0"] == (None, None)  # of an earlier version


def test_figures_are_linked_and_equal_for_equal_results(write):
    report = report_of(load_comparison(write()))
    folder = report.comparison.output / "figures"
    first = {f.name: f.read_bytes() for f in folder.iterdir()}
    assert first.keys() == {"em.svg", "f1.svg", "bound.svg", "effective_sample_size.svg"}
    for name, content in first.items():
        assert f"](figures/{name})" in text_of(report)
        assert b"plain" in content and b"centred" in content and b"selections drawn" in content
    report.write()
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == first


@pytest.mark.usefixtures("without_figures")
def test_a_curve_is_the_mean_between_the_lowest_and_the_highest_seed(write):
    from dro_rl.comparison.figures import curves

    report = report_of(
        load_comparison(write()),
        plain_0={"ems": (0.2, 0.4, 0.6)},
        plain_1={"ems": (0.2, 0.6)},
    )
    plain, _ = curves(report.comparison, report.results, "em")
    assert plain.selections == [0, 32, 64]
    assert plain.mean == pytest.approx([0.2, 0.5, 0.6])
    assert (plain.low, plain.high) == ([0.2, 0.4, 0.6], [0.2, 0.6, 0.6])


@pytest.mark.usefixtures("without_figures")
def test_the_screen_shows_the_same_tables_whole(write):
    report = report_of(load_comparison(write()), failed=[("centred", 1)])
    screen = io.StringIO()
    report.show(Console(RichConsole(file=screen, width=60, soft_wrap=True)))
    shown = " ".join(screen.getvalue().split())
    for name in ("plain", "centred - plain"):
        for cell in row(text_of(report).split("## Held-out")[1], name):
            assert cell in shown
    assert "failed: centred seed 1: ArithmeticError: too picky" in shown
    assert str(report.comparison.output / "report.md") in shown
