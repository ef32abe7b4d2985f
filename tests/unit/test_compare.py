"""Comparisons without a process: what a file may say, what is fair, how far runs are, reports."""

import csv
import io
import json
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from rich.console import Console as RichConsole

from dro_rl.at_work import NAME, at_work
from dro_rl.compare import run_comparison
from dro_rl.comparison import report as report_module
from dro_rl.comparison.fairness import covered
from dro_rl.comparison.processes import last_error
from dro_rl.comparison.report import Failure, Report
from dro_rl.comparison.runs import Run, read_result, runs_of
from dro_rl.comparison.spec import Comparison, load_comparison
from dro_rl.errors import UserError
from dro_rl.tracking.console import Console
from dro_rl.tracking.run_directory import RunDirectory

pytestmark = pytest.mark.unit

BASE = {
    "data": {"kind": "facts"},
    "retrieval": {"kind": "given", "candidates": 8},
    "selector": {"model": "a/b"},
    "generator": {"model": "a/b"},
    "algorithm": {"kind": "dro", "samples": 4},
    "training": {"iterations": 2, "questions_per_iteration": 8},
}
ARMS = {"plain": {}, "centred": {"algorithm": {"baseline": "uniform"}}}


@pytest.fixture
def write(tmp_path):
    """Writes a comparison beside its base recipe; returns its path."""

    def write(text: str | None = None, **changes) -> str:
        (tmp_path / "base.yaml").write_text(yaml.safe_dump(BASE))
        settings = {
            "base": "base.yaml",
            "seeds": [0, 1],
            "output": str(tmp_path / "out"),
            "arms": ARMS,
        } | changes
        kept = {k: v for k, v in settings.items() if v is not None}
        path = tmp_path / "mine.yaml"
        path.write_text(text or yaml.safe_dump(kept, sort_keys=False))
        return str(path)

    return write


def problem(name: str, *overrides: str) -> str:
    with pytest.raises(UserError) as told:
        load_comparison(name, overrides)
    return str(told.value)


# --- the file -------------------------------------------------------------------------------------


def test_settings_apply_to_every_arm_and_an_arm_wins(write):
    comparison = load_comparison(
        write(
            settings={"training": {"epochs": 3}, "selector": {"learning_rate": 0.5}},
            arms={"one": {}, "two": {"selector": {"learning_rate": 0.25}}},
        )
    )
    one, two = (arm.recipe for arm in comparison.arms)
    assert (one.training.epochs, two.training.epochs) == (3, 3)
    assert (one.selector.learning_rate, two.selector.learning_rate) == (0.5, 0.25)
    assert one.training.iterations == 2  # the base's


def test_overrides_reach_every_arm_last_and_the_comparisons_own(write, tmp_path):
    comparison = load_comparison(
        write(arms={"one": {}, "two": {"training": {"iterations": 5}}}),
        ["training.iterations=7", "seeds=[4]", f"output={tmp_path / 'else'}"],
    )
    assert [arm.recipe.training.iterations for arm in comparison.arms] == [7, 7]
    assert (comparison.seeds, comparison.output) == ((4,), tmp_path / "else")


def test_an_arm_may_name_a_recipe_of_its_own(write, tmp_path):
    path = write(base=None, arms={"one": {"recipe": "other.yaml"}})
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(BASE | {"generator": {"model": "c/d"}}))
    (arm,) = load_comparison(path).arms
    assert arm.recipe.generator.model == "c/d"


def test_every_run_has_its_seed_and_its_place(write, tmp_path):
    runs = runs_of(load_comparison(write()))
    assert [(r.arm, r.seed) for r in runs] == [
        ("plain", 0),
        ("centred", 0),
        ("plain", 1),
        ("centred", 1),
    ]
    for run in runs:
        assert run.recipe.training.seed == run.seed
        place = str(tmp_path / "out" / run.arm / f"seed-{run.seed}")
        assert run.recipe.tracking.run_dir == place == str(run.folder)


def test_the_shipped_comparison_is_fair_and_executable():
    comparison = load_comparison("compare_demo.yaml")
    assert len(comparison.arms) >= 2 and comparison.path.stat().st_mode & 0o111
    assert comparison.path.read_text().startswith("#!/usr/bin/env -S dro-rl compare\n")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"seed": [1]}, "seed: unknown key; did you mean seeds?"),
        ({"seeds": None}, "seeds: is required"),
        ({"seeds": []}, "seeds: "),
        ({"seeds": [1, 1]}, "seeds: a seed is there twice"),
        ({"seeds": [True]}, "seeds.0: "),
        ({"seeds": [-1]}, "seeds.0: "),
        ({"output": None}, "output: is required"),
        ({"arms": {}}, "arms: "),
        ({"arms": {"a b": {}}}, "the arm's name 'a b'"),
        ({"arms": {"../up": {}}}, "the arm's name '../up'"),
        ({"arms": {1: {}}}, "quote it if it is a number"),
        ({"arms": {"figures": {}}}, "rename that arm"),
        ({"arms": {"a": 3}}, "arms.a: "),
        ({"base": None}, "arm plain: names no recipe, and there is no base"),
        ({"base": "nowhere.yaml"}, "nowhere.yaml: no such file"),
        ({"arms": {"a": {"recipe": 3}}}, "arm a: recipe: must be the name"),
        ({"may_differ": ["selector.learning_rat"]}, "did you mean selector.learning_rate?"),
        ({"settings": {"training": {"seed": 3}}}, "settings: training.seed is set run by run"),
        ({"arms": {"a": {"tracking": {"run_dir": "x"}}}}, "arm a: tracking.run_dir is set run"),
    ],
)
def test_a_bad_file_is_refused(write, changes, told):
    assert told in problem(write(**changes))


def test_an_arms_bad_recipe_is_refused_by_its_name(write):
    said = problem(write(arms={"good": {}, "bad": {"algorithm": {"sampels": 3}}}))
    assert "arm bad" in said and "algorithm.sampels: unknown key; did you mean samples?" in said


def test_an_override_may_not_set_what_each_run_has_of_its_own(write):
    assert "give seeds instead" in problem(write(), "training.seed=3")
    assert "give output instead" in problem(write(), "tracking.run_dir=x")


@pytest.mark.parametrize("twice", ["  one: {}\n  one: {}", "  one: {}\nseeds: [1]"])
def test_a_key_that_is_there_twice_is_refused(write, twice):
    text = f"base: base.yaml\noutput: out\nseeds: [0]\narms:\n{twice}\n"
    assert "is there twice" in problem(write(text))


def test_text_that_is_not_yaml_is_refused_with_its_line(write):
    assert "line 2" in problem(write("base: a\n  seeds: [0]\n"))


# --- fairness -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"algorithm": {"tau": 2.0, "train": ["selector"]}},
        {"reward": "rewards/f1.py"},
        {"selector": {"learning_rate": 1e-3}, "generator": {"learning_rate": 1e-3}},
    ],
)
def test_what_is_compared_may_differ(write, changes):
    assert len(load_comparison(write(arms={"one": {}, "two": changes})).arms) == 2


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"data": {"rumours": 0.9}}, "data.rumours"),
        ({"selector": {"model": "other/model"}}, "selector.model"),
        ({"selector": {"lora": {"rank": 4}}}, "selector.lora"),
        ({"retrieval": {"candidates": 6}}, "retrieval.candidates"),
        ({"training": {"epochs": 2}}, "training.epochs"),
        ({"evaluation": {"samples": 2}}, "evaluation.samples"),
        ({"rollout": {"temperature": 0.7}}, "rollout.temperature"),
    ],
)
def test_anything_else_is_refused_unless_listed(write, changes, key):
    arms = {"one": {}, "two": changes}
    said = problem(write(arms=arms))
    assert "arm two" in said and key in said and "may_differ" in said
    assert load_comparison(write(arms=arms, may_differ=[key.split(".")[0]]))
    assert load_comparison(write(arms=arms, may_differ=[key]))


def test_a_prefix_ends_at_a_dot():
    assert covered("retrieval.corpus", ["retrieval"])
    assert covered("retrieval.corpus", ["retrieval.corpus"])
    assert not covered("retrieval.corpus_path", ["retrieval.corpus"])


def test_arms_draw_the_same_number_of_selections(write):
    arms = {"one": {}, "two": {"algorithm": {"samples": 8}}}
    said = problem(write(arms=arms))
    assert "arm two" in said and "algorithm.samples" in said
    assert "8 a question x 8 questions x 2 iterations" in said
    assert load_comparison(write(arms=arms, may_differ=["algorithm.samples"]))


def test_more_samples_in_fewer_iterations_are_the_same_number(write):
    twice = {"algorithm": {"samples": 8}, "training": {"iterations": 1}}
    assert load_comparison(
        write(arms={"one": {}, "two": twice}, may_differ=["training.iterations"])
    )
    thrice = {"algorithm": {"samples": 12}, "training": {"iterations": 1}}
    said = problem(write(arms={"one": {}, "two": thrice}, may_differ=["training.iterations"]))
    assert "algorithm.samples" in said


# --- where runs stand -----------------------------------------------------------------------------


def fabricate(run: Run, ems=(0.25, 0.5, 0.75), seconds=2.0, questions=4) -> None:
    """What `dro-rl train` leaves of a run: the warm start and an iteration for each further EM."""
    directory = RunDirectory.create(run.recipe)
    for iteration, em in enumerate(ems):
        right = round(em * questions)
        rows = [
            {"example": f"q{run.seed}-{i}", "em": float(i < right), "f1": float(i < right)}
            | {"bound": -2.0 + em + 0.1 * i}
            for i in range(questions)
        ]
        summary = {"iteration": iteration, "questions": questions, "em": em, "f1": em}
        summary |= {"gold_recall": None, "bound": -2.0 + em, "malformed": 0.0}
        directory.write_evaluation(
            f"iteration-{iteration:04d}", summary | {"effective_sample_size": 3.0}, rows
        )
        if iteration:
            drawn = pa.table({"sample": range(32)})
            pq.write_table(drawn, run.folder / "rollouts" / f"iteration-{iteration:04d}.parquet")
            (run.folder / "checkpoints" / f"iteration-{iteration:04d}").mkdir()
            directory.append_metrics({"iteration": iteration, "step": iteration})
            times = {"time/rollout": seconds, "time/learn": seconds, "time/evaluate": 100.0}
            directory.append_metrics({"iteration": iteration, **times})


@pytest.fixture
def runs(write) -> list[Run]:
    return runs_of(load_comparison(write()))


def test_a_run_is_finished_with_its_last_iterations_checkpoint(runs):
    new, half, done, _ = runs
    fabricate(half, (0.1, 0.2))
    fabricate(done)
    assert [r.state() for r in (new, half, done)] == ["new", "resumable", "finished"]


def test_a_run_without_a_checkpoint_begins_anew(runs):
    fabricate(runs[0], (0.1,))
    assert runs[0].state() == "begun"
    assert runs[0].clear(print) == "new"
    assert not runs[0].folder.exists() and runs[0].state() == "new"


def test_a_run_that_another_command_has_begun_is_not_cleared(runs):
    fabricate(runs[0], (0.1,))
    before = sorted(runs[0].folder.rglob("*"))
    with at_work(runs[0].folder, print):
        with pytest.raises(UserError, match="is at work on this run: .* place with output="):
            runs[0].clear(print)
        fabricated = [p for p in sorted(runs[0].folder.rglob("*")) if p.name != NAME]
        assert fabricated == before
    (runs[0].folder / "checkpoints" / "iteration-0001").mkdir()  # it came to a checkpoint
    assert runs[0].clear(print) == "resumable"
    assert (runs[0].folder / "checkpoints" / "iteration-0001").exists()


def test_a_comparison_refuses_a_run_begun_elsewhere_before_it_starts_any(write):
    comparison = load_comparison(write())
    mine, theirs = runs_of(comparison)[:2]
    theirs.folder.mkdir(parents=True)
    with (
        at_work(theirs.folder, print),
        pytest.raises(UserError, match="seed-0: process .* at work"),
    ):
        run_comparison(comparison, "dro-rl compare", 1, Console(RichConsole(quiet=True)))
    assert not mine.log.exists() and theirs.folder.exists()


def test_a_run_that_was_killed_before_it_had_a_recipe_begins_anew(runs):
    (runs[0].folder / "checkpoints").mkdir(parents=True)
    (runs[0].folder / "recipe.yaml.x3k").write_text("half")
    assert runs[0].state() == "begun"


def test_a_folder_of_something_else_is_refused(runs):
    runs[0].folder.mkdir(parents=True)
    (runs[0].folder / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="thesis.tex and is not a run"):
        runs[0].state()


def test_a_run_of_another_recipe_is_refused_with_the_key(runs, write):
    fabricate(runs[0])
    changed = runs_of(load_comparison(write(), ["training.weight_decay=0.5"]))
    with pytest.raises(UserError, match="training.weight_decay: 0.0.*plain now has 0.5") as told:
        changed[0].state()
    assert str(runs[0].folder) in str(told.value) and "output=" in str(told.value)


def test_a_moved_comparison_goes_on(runs, write, tmp_path):
    fabricate(runs[0])
    shutil.move(tmp_path / "out", tmp_path / "moved")
    moved = runs_of(load_comparison(write(), [f"output={tmp_path / 'moved'}"]))
    assert moved[0].state() == "finished"


@pytest.mark.parametrize(
    ("ems", "state"), [((0.5, 0.4), "finished"), ((0.5, 0.6), "resumable"), ((0.5,), "begun")]
)
def test_a_run_that_stopped_early_is_finished(write, ems, state):
    settings = {"training": {"early_stop": {"metric": "em", "patience": 1}, "iterations": 5}}
    run = runs_of(load_comparison(write(settings=settings)))[0]
    fabricate(run, ems)
    assert run.state() == state


# --- the report -----------------------------------------------------------------------------------


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


# --- logs of runs that failed ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("log", "code", "told"),
    [
        ("start\nTraceback ...\nValueError: no\n\n", 1, "ValueError: no"),
        ("start\nerror: bad.yaml: not valid:\n  a: b\n", 2, "bad.yaml: not valid:\n  a: b"),
        ("error: of an earlier try\nerror: this one\n", 2, "this one"),
        ("half a li", -9, "ended by SIGKILL"),
        ("", 1, "exit code 1, without a word"),
    ],
)
def test_why_a_run_failed_is_read_from_its_log(log, code, told):
    assert last_error(log, code) == told


def test_compare_reads_no_torch_before_it_runs(write):
    """A comparison is checked in a second: nothing heavy is needed to refuse it."""
    import subprocess
    import sys

    code = (
        "import sys; from dro_rl.comparison.spec import load_comparison; "
        f"load_comparison({write()!r}); print(sorted({{'torch', 'ray'}} & sys.modules.keys()))"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_a_recipe_is_not_a_comparison():
    with pytest.raises(UserError, match="is a recipe, not a comparison: dro-rl train"):
        load_comparison("demo.yaml")
