"""A recipe from files: where they are found, `extends`, overrides, and at once."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from dro_rl import resources
from dro_rl.recipe_file import load_recipe, localise, make_recipe
from dro_rl.sections.data import FactsData
from tests.written_recipes import VALID, problem, writer

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def write(tmp_path):
    return writer(tmp_path)


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """The folder of recipes that the project carries, empty."""
    monkeypatch.setattr(resources, "_PACKAGE", tmp_path / "project" / "dro_rl")
    folder = tmp_path / "project" / "recipes"
    folder.mkdir(parents=True)
    return folder


# --- files --------------------------------------------------------------------------------------


def test_a_missing_recipe_lists_those_that_the_project_carries(shipped):
    (shipped / "demo.yaml").write_text(VALID)
    (shipped / "hotpot.yaml").write_text(VALID)
    told = problem("demmo.yaml")
    assert told == (
        "demmo.yaml: no such file. The project carries recipes/demo.yaml, recipes/hotpot.yaml"
    )


@pytest.mark.parametrize("name", ["", ".", "x" * 400, "recipes/" + "x" * 400])
def test_a_name_that_can_be_no_file_is_refused_too(shipped, name):
    assert "no such file" in problem(name)


@pytest.mark.parametrize("name", ["demo.yaml", "recipes/demo.yaml"])
def test_a_shipped_recipe_is_found_from_any_folder(shipped, tmp_path, monkeypatch, name):
    (shipped / "demo.yaml").write_text(VALID)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert load_recipe(name).data.kind == "jsonl"


def test_a_file_in_the_working_folder_wins_over_a_shipped_one(shipped, write, monkeypatch):
    (shipped / "demo.yaml").write_text(VALID)
    path = Path(write(VALID.replace("candidates: 10", "candidates: 7"), "recipes/demo.yaml"))
    monkeypatch.chdir(path.parent.parent)
    assert load_recipe("recipes/demo.yaml").retrieval.candidates == 7


def test_broken_yaml_names_the_line(write):
    told = problem(write("data:\n  kind: jsonl\n  path: [a, b\nretrieval: {}\n"))
    assert "recipe.yaml, line 4" in told


@pytest.mark.parametrize(
    "text", ["", "- a\n- b\n", "just words", "data: \x07\n", "tracking: {run_dir: 2024-13-45}"]
)
def test_a_file_that_is_no_recipe_is_refused_by_name(write, text):
    assert "recipe.yaml" in problem(write(text))


def test_a_file_that_is_not_text_is_refused(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xff\xfe\x00data")
    assert "cannot be read as text" in problem(str(path))


# --- extends ------------------------------------------------------------------------------------


def test_extends_takes_the_file_beside_and_overrides_single_settings(write, monkeypatch, tmp_path):
    write(VALID, "deep/base.yaml")
    path = write("extends: base.yaml\nselector: {documents: 3}\n", "deep/child.yaml")
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(path)
    assert recipe.selector.documents == 3
    assert recipe.selector.model == "models/selector"


def test_extends_finds_a_shipped_recipe_by_name(shipped, write):
    (shipped / "demo.yaml").write_text(VALID)
    path = write("extends: recipes/demo.yaml\nretrieval: {candidates: 6}\n", "mine/child.yaml")
    recipe = load_recipe(path)
    assert recipe.retrieval.candidates == 6


def test_extends_goes_through_several_files(write):
    write(VALID, "a.yaml")
    write("extends: a.yaml\ntraining: {iterations: 2, seed: 2}\n", "b.yaml")
    recipe = load_recipe(write("extends: b.yaml\ntraining: {seed: 3}\n", "c.yaml"))
    assert (recipe.training.iterations, recipe.training.seed) == (2, 3)


def test_a_section_of_another_kind_replaces_the_bases_whole(write):
    write(VALID, "base.yaml")
    path = write("extends: base.yaml\ndata: {kind: facts, documents: 10}\n", "child.yaml")
    assert load_recipe(path).data == FactsData(kind="facts", documents=10)


def test_a_recipe_that_extends_itself_through_others_is_refused(write):
    write("extends: b.yaml\n", "a.yaml")
    path = write("extends: a.yaml\n", "b.yaml")
    told = problem(path)
    assert "extends itself" in told and "a.yaml" in told and "b.yaml" in told


@pytest.mark.parametrize(
    ("base", "told"),
    [("nowhere.yaml", "nowhere.yaml: no such file"), ("[a, b]", "must be the name of one recipe")],
)
def test_extends_of_nothing_is_refused(write, base, told):
    assert told in problem(write(f"extends: {base}\n"))


def test_a_broken_base_is_named_itself(write):
    write("data: [", "base.yaml")
    assert "base.yaml, line" in problem(write("extends: base.yaml\n", "child.yaml"))


# --- overrides ----------------------------------------------------------------------------------


def test_overrides_are_read_as_yaml_and_the_last_one_wins(write):
    recipe = load_recipe(
        write(),
        [
            "algorithm.samples=16",
            "algorithm.samples=4",
            "selector.learning_rate=1e-4",
            "retrieval.shuffle=false",
            "algorithm.train=[generator]",
            "training.questions_per_iteration=all",
            "data.path=a=b.jsonl",
            "data.train_questions=null",
        ],
    )
    assert recipe.algorithm.samples == 4
    assert recipe.selector.learning_rate == 1e-4
    assert recipe.retrieval.shuffle is False
    assert recipe.algorithm.train == ["generator"]
    assert recipe.data.path == "a=b.jsonl"


def test_an_override_makes_sections_that_the_file_lacks(write):
    recipe = load_recipe(write(), ["selector.lora.rank=8", "training.early_stop.patience=2"])
    assert recipe.selector.lora.rank == 8
    assert recipe.training.early_stop.patience == 2


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("training.iterations", "write section.key=value"),
        ("=3", "write section.key=value"),
        ("training.iterations=[1", "the value is not YAML"),
        ("tracking.run_dir=2024-13-45", "the value is not YAML"),
        ("data.path.x=1", "path is not a section"),
    ],
)
def test_a_malformed_override_is_quoted(write, override, told):
    message = problem(write(), override)
    assert told in message and repr(override) in message


# --- resolving ----------------------------------------------------------------------------------


def test_resolved_settings_make_the_same_recipe_again(write):
    recipe = load_recipe(write(), ["selector.lora.rank=8", "algorithm.tau=per_token"])
    assert make_recipe(recipe.resolved(), "again") == recipe


def test_localise_makes_the_paths_absolute(write, tmp_path, monkeypatch):
    path = write()
    (tmp_path / "models" / "selector").mkdir(parents=True)
    (tmp_path / "rewards").mkdir()
    (tmp_path / "rewards" / "mine.py").touch()
    (tmp_path / "train.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    recipe = localise(load_recipe(path, ["reward=rewards/mine.py", "tracking.run_dir=runs/a"]))
    monkeypatch.chdir("/")
    assert recipe.selector.model == str(tmp_path / "models" / "selector")
    assert recipe.reward.use == str(tmp_path / "rewards" / "mine.py")
    assert recipe.tracking.run_dir == str(tmp_path / "runs" / "a")
    assert recipe.data.path == str(tmp_path / "train.jsonl")
    assert localise(recipe) == recipe


def test_localise_leaves_names_that_are_no_paths(write):
    overrides = ["selector.model=Qwen/Qwen2.5-1.5B", "reward=my.module:Mine"]
    recipe = localise(load_recipe(write(), overrides))
    assert recipe.selector.model == "Qwen/Qwen2.5-1.5B"
    assert recipe.reward.use == "my.module:Mine"


def test_a_default_kind_may_be_written_out(tmp_path):
    (tmp_path / "base.yaml").write_text("extends: demo.yaml\nalgorithm: {samples: 16}\n")
    (tmp_path / "child.yaml").write_text("extends: base.yaml\nalgorithm: {kind: dro}\n")
    assert load_recipe(str(tmp_path / "child.yaml")).algorithm.samples == 16


# --- quick answers ------------------------------------------------------------------------------


def run_python(code: str, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_recipes_are_read_without_torch_ray_or_vllm():
    code = (
        "import sys, dro_rl.recipe, dro_rl.recipe_file, dro_rl.cli\n"
        "heavy = {'torch', 'ray', 'vllm', 'transformers', 'datasets', 'numpy', 'pyarrow'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert run_python(code).stdout.strip() == "[]"


def test_check_answers_quickly_with_recipe_words_and_memory(write, tmp_path):
    path = write(VALID.replace("models/selector", "Qwen/Qwen2.5-1.5B-Instruct"))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run_python("from dro_rl.cli import main; main()", "check", path, cwd=tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5  # seconds
    assert "documents: 5" in done.stdout and "temperature: 1.0" in done.stdout  # defaults too
    assert "draws 8 selections of up to 5 of 10 documents" in done.stdout
    assert "nothing here says how large models/generator is" in done.stdout
