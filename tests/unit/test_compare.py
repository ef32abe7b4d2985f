"""Comparisons without a process: what a file may say, what is fair, why a run failed."""

from pathlib import Path

import pytest
import yaml

from dro_rl.comparison.fairness import covered
from dro_rl.comparison.processes import last_error
from dro_rl.comparison.runs import runs_of
from dro_rl.comparison.spec import load_comparison
from dro_rl.errors import UserError
from tests.made_comparisons import BASE, writer

pytestmark = pytest.mark.unit


@pytest.fixture
def write(tmp_path):
    return writer(tmp_path)


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
