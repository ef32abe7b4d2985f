"""Reading recipes: what is accepted, and what a user is told of everything else."""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from textwrap import dedent

import pytest

from dro_rl import resources
from dro_rl.errors import UserError
from dro_rl.recipe_file import load_recipe, localise, make_recipe
from dro_rl.sections.data import FactsData
from dro_rl.sections.retrieval import Bm25Retrieval

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
VALID = """
data:
  kind: jsonl
  path: train.jsonl
  evaluation_questions: 2
retrieval:
  kind: given
  candidates: 10
selector:
  model: models/selector
generator:
  model: models/generator
"""


@pytest.fixture
def write(tmp_path):
    def write(text: str = VALID, name: str = "recipe.yaml") -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text))
        return str(path)

    return write


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """The folder of recipes that the project carries, empty."""
    monkeypatch.setattr(resources, "_PACKAGE", tmp_path / "project" / "dro_rl")
    folder = tmp_path / "project" / "recipes"
    folder.mkdir(parents=True)
    return folder


def problem(name: str, *overrides: str) -> str:
    with pytest.raises(UserError) as told:
        load_recipe(name, overrides)
    return str(told.value)


# --- strictness ---------------------------------------------------------------------------------


def test_defaults_are_the_papers(write):
    recipe = load_recipe(write())
    assert recipe.selector.documents == 5
    assert recipe.algorithm.kind == "dro"
    assert recipe.algorithm.train == ["selector", "generator"]
    assert recipe.rollout.temperature == 1
    assert recipe.generator.answers == "first"


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("trainig.iterations=3", "trainig: unknown key; did you mean training?"),
        ("training.iteration=3", "training.iteration: unknown key; did you mean iterations?"),
        ("data.pth=x", "data.pth: unknown key; did you mean path?"),
        ("retrieval.candidate=3", "retrieval.candidate: unknown key; did you mean candidates?"),
        ("selector.lora.rnk=3", "selector.lora.rnk: unknown key; did you mean rank?"),
        ("selector.scratch.head=4", "selector.scratch.head: unknown key; did you mean heads?"),
        (
            "training.early_stop.metrics=em",
            "training.early_stop.metrics: unknown key; did you mean metric?",
        ),
        ("generator.documents=4", "generator.documents: unknown key; known keys: model, init"),
        ("tracking.zzz=4", "tracking.zzz: unknown key; known keys: run_dir"),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(write, override, told):
    assert told in problem(write(), override)


def test_an_option_of_another_kind_is_an_error(write):
    assert "retrieval.k1: belongs to kind: bm25" in problem(write(), "retrieval.k1=2")
    assert load_recipe(write(), ["retrieval.kind=bm25", "retrieval.k1=2"]).retrieval == (
        Bm25Retrieval(kind="bm25", candidates=10, k1=2)
    )


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("retrieval.kind=bm26", "retrieval.kind: must be one of 'given', 'bm25'"),
        ("data={path: x.jsonl}", "data.kind: must be one of 'facts', 'hotpotqa', 'musique'"),
        ("selector={}", "selector.model: is required"),
        ("data=train.jsonl", "data"),
        ("training.iterations=many", "training.iterations: Input should be a valid integer"),
        ("training.iterations=0", "training.iterations: Input should be greater than 0"),
        ("training.iterations=2.5", "training.iterations: Input should be a valid integer"),
        ("selector.learning_rate=-1", "selector.learning_rate: Input should be greater than 0"),
        ("retrieval.shuffle=perhaps", "retrieval.shuffle: Input should be a valid boolean"),
        ("selector.dtype=float16", "selector.dtype: Input should be 'float32' or 'bfloat16'"),
        ("selector=big", "selector: Input should be a valid dictionary"),
        ("algorithm.train=[reader]", "algorithm.train.0: Input should be 'selector' or"),
        ("algorithm.train=[]", "algorithm.train: List should have at least 1 item"),
    ],
)
def test_a_bad_value_is_named_with_its_key(write, override, told):
    assert told in problem(write(), override)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("algorithm.tau=often", "algorithm.tau"),
        ("training.questions_per_iteration=some", "training.questions_per_iteration"),
        ("selector.lora.target_modules=3", "selector.lora.target_modules"),
    ],
)
def test_a_bad_value_of_a_key_with_two_types_names_no_key_that_is_not_there(write, override, key):
    lines = [line.strip() for line in problem(write(), override).splitlines()[1:]]
    assert lines and all(line.startswith(f"{key}: ") for line in lines), lines


def test_the_value_that_was_given_is_shown(write):
    assert "(given: 'many')" in problem(write(), "training.iterations=many")


def test_every_problem_is_told_at_once(write):
    told = problem(write(), "training.iterations=0", "selector.modle=x", "retrieval.kind=x")
    assert told.count("\n") == 3


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["selector.documents=11"], "selector.documents (11) exceeds retrieval.candidates (10)"),
        (
            ["data={kind: facts}"],
            "retrieval.candidates (10) exceeds data.documents (8)",
        ),
        (
            ["data={kind: facts, documents: 10}", "retrieval.kind=bm25"],
            "set retrieval.kind: bm25 and retrieval.corpus: own",
        ),
        (
            ["retrieval={kind: bm25, corpus: own, corpus_path: x.jsonl}"],
            "corpus: own ranks the question's own documents: drop corpus_path",
        ),
        (
            ["data={kind: facts, documents: 10, value_words: 3}", "generator.max_new_tokens=7"],
            "generator.max_new_tokens (7) has no room for two values of data.value_words: 3: raise "
            "it to 8 or more",
        ),
        (["warmup.pretraining=facts"], "warmup.pretraining: facts belongs to data.kind: facts"),
        (
            ["algorithm.tau=per_token", "generator.answers=any"],
            "algorithm.tau: per_token needs generator.answers: first",
        ),
        (
            ["algorithm.train=[generator]", "rollout.temperature=0.7"],
            "selector must be in algorithm.train",
        ),
        (["rollout.top_p=0.9"], "rollout: top_p and top_k cut the support"),
        (["rollout.top_k=50"], "rollout: top_p and top_k cut the support"),
        (
            ["algorithm.baseline=uniform", "algorithm.samples=1"],
            "algorithm: baseline: uniform with samples: 1",
        ),
        (["algorithm.train=[selector, selector]"], "algorithm: train names a policy twice"),
        (
            ["selector.max_new_tokens=64", "selector.max_length=64"],
            "selector: max_new_tokens must be smaller than max_length",
        ),
        (["selector.scratch.hidden_size=100"], "selector.scratch: hidden_size / heads must be"),
    ],
)
def test_contradictory_settings_are_refused(write, overrides, told):
    assert told in problem(write(), *overrides)


def test_settings_that_only_look_contradictory_are_accepted(write):
    load_recipe(write(), ["rollout.top_p=0.9", "rollout.allow_biased_sampling=true"])
    load_recipe(write(), ["algorithm.train=[selector]", "rollout.temperature=0.7"])
    load_recipe(
        write(),
        ["data={kind: facts, documents: 10}", "retrieval.kind=bm25", "retrieval.corpus=own"],
    )


# --- algorithms ---------------------------------------------------------------------------------

KINDS = ("dro", "maxrl", "grpo", "rloo", "reinforce", "ppo", "independent")


@pytest.mark.parametrize("kind", KINDS)
def test_every_algorithm_needs_its_kind_alone(write, kind):
    recipe = load_recipe(write(), [f"algorithm={{kind: {kind}}}"])
    assert recipe.algorithm.kind == kind
    assert recipe.algorithm.samples == 8
    assert recipe.algorithm.train == ["selector", "generator"]
    assert recipe.decoding == ("independent" if kind == "independent" else "free")


def test_an_algorithm_without_a_kind_is_dro(write):
    assert load_recipe(write(), ["algorithm={baseline: uniform}"]).algorithm.kind == "dro"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ("{kind: dr_grpo}", "algorithm.kind: must be one of 'dro', 'maxrl', 'grpo', 'rloo'"),
        ("{kind: maxrl, tau: 2}", "algorithm.tau: belongs to kind: dro"),
        ("{kind: grpo, scael: none}", "algorithm.scael: unknown key; did you mean scale?"),
        ("{kind: grpo, scale: mean}", "algorithm.scale: Input should be 'std' or 'none'"),
        ("{kind: grpo, clip: 1}", "algorithm.clip: Input should be less than 1"),
        ("{kind: grpo, kl: -1}", "algorithm.kl: Input should be greater than or equal to 0"),
        (
            "{kind: rloo, kl: 0.1}",
            "algorithm.kl: belongs to kind: grpo",
        ),
        ("{kind: rloo, cip: 0.1}", "algorithm.cip: unknown key; did you mean clip?"),
        ("{kind: reinforce, clip: 0.1}", "algorithm.clip: belongs to kind: grpo"),
        ("{kind: reinforce, dcay: 0.1}", "algorithm.dcay: unknown key; did you mean decay?"),
        ("{kind: reinforce, decay: 1.5}", "algorithm.decay: Input should be less than or equal to"),
        ("{kind: ppo, gae: 1}", "algorithm.gae: unknown key"),
        ("{kind: ppo, gae_lamda: 1}", "algorithm.gae_lamda: unknown key; did you mean gae_lambda?"),
        ("{kind: ppo, normalise: 3}", "algorithm.normalise: Input should be a valid boolean"),
        ("{kind: independent, tau: 2}", "algorithm.tau: belongs to kind: dro"),
        ("{kind: dro, maximise: log_reward}", "algorithm.maximise: belongs to kind: grpo or rloo"),
        ("{kind: dro, clip: 0.2}", "algorithm.clip: belongs to kind: grpo or rloo or ppo"),
        (
            "{kind: dro, min_effective_sample_size: 0.5}",
            "algorithm.min_effective_sample_size: Input should be greater than or equal to 1",
        ),
        (
            "{kind: dro, samples: 4, min_effective_sample_size: 5}",
            "min_effective_sample_size (5.0) exceeds samples (4), which is the most it can be",
        ),
    ],
)
def test_an_option_that_an_algorithm_does_not_have_is_told(write, settings, told):
    assert told in problem(write(), f"algorithm={settings}")


@pytest.mark.parametrize("kind", ["maxrl", "grpo", "rloo", "independent", "trl_grpo"])
def test_a_baseline_of_the_others_needs_others(write, kind):
    train = "train: [selector]"
    told = problem(write(), f"algorithm={{kind: {kind}, samples: 1, {train}}}")
    assert f"algorithm: kind: {kind} compares the selections of a question with each other" in told
    assert "Set samples to 2 or more" in told
    load_recipe(write(), [f"algorithm={{kind: {kind}, samples: 2, {train}}}"])


@pytest.mark.parametrize("kind", ["maxrl", "grpo", "rloo"])
def test_a_generator_alone_learns_from_one_selection(write, kind):
    load_recipe(write(), [f"algorithm={{kind: {kind}, samples: 1, train: [generator]}}"])


@pytest.mark.parametrize("kind", ["dro", "reinforce", "ppo"])
def test_algorithms_without_a_group_take_one_sample(write, kind):
    load_recipe(write(), [f"algorithm={{kind: {kind}, samples: 1}}"])


@pytest.mark.parametrize("kind", KINDS)
def test_another_sampling_distribution_is_for_algorithms_that_correct_it(write, kind):
    for sampling in ("temperature: 0.7", "top_p: 0.9, allow_biased_sampling: true"):
        overrides = [f"algorithm={{kind: {kind}}}", f"rollout={{{sampling}}}"]
        if kind in ("dro", "maxrl", "reinforce"):
            load_recipe(write(), overrides)
        else:
            told = problem(write(), *overrides)
            assert f"algorithm.kind: {kind} compares the selector with the one that sampled" in told
            assert "leave rollout.temperature at 1" in told


def test_what_is_sampled_ahead_must_be_allowed_to_be_stale(write):
    assert "leave max_staleness at 1" in problem(
        write(), "rollout.overlap=1", "rollout.max_staleness=0"
    )
    load_recipe(write(), ["rollout.overlap=1", "rollout.max_staleness=1"])
    load_recipe(write(), ["rollout.max_staleness=0"])


@pytest.mark.parametrize("decoding", ["distinct", "retriever"])
def test_independent_leaves_decoding_no_say(write, decoding):
    told = problem(
        write(),
        "algorithm={kind: independent, train: [generator]}",
        f"rollout.decoding={decoding}",
    )
    assert "algorithm.kind: independent scores each document alone" in told


def test_independent_scores_each_candidate_once(write):
    kind = "algorithm={kind: independent, samples: 11}"
    assert "algorithm.samples (11) exceeds retrieval.candidates (10)" in problem(write(), kind)
    load_recipe(write(), [kind, "retrieval.candidates=11"])


def test_the_retriever_leaves_the_selector_nothing_to_learn(write):
    retriever = "rollout.decoding=retriever"
    told = problem(write(), retriever)
    assert "rollout.decoding: retriever selects without the selector" in told
    assert "set algorithm.train: [generator]" in told
    load_recipe(write(), [retriever, "algorithm.train=[generator]"])


def test_trls_trainer_is_of_the_selector_alone(write):
    told = problem(write(), "algorithm={kind: trl_grpo, train: [selector, generator]}")
    assert "kind: trl_grpo trains the selector alone: train: [selector]" in told
    assert load_recipe(write(), ["algorithm={kind: trl_grpo}"]).algorithm.train == ["selector"]


def test_trls_trainer_samples_freely(write):
    told = problem(write(), "algorithm.kind=trl_grpo", "rollout.decoding=distinct")
    assert "rollout.decoding must be free, not distinct" in told


@pytest.mark.parametrize("kind", ["grpo", "rloo", "ppo"])
def test_a_ratio_to_the_policy_that_sampled_allows_no_dropout(write, kind):
    lora = "selector.lora={rank: 4, dropout: 0.1}"
    told = problem(write(), f"algorithm={{kind: {kind}}}", lora)
    assert "set selector.lora.dropout to 0" in told
    load_recipe(write(), [f"algorithm={{kind: {kind}, train: [generator]}}", "selector.lora=null"])
    load_recipe(write(), [lora])


def test_an_algorithm_given_by_its_name_alone_is_told_how(write):
    assert "write algorithm.kind=grpo" in problem(write(), "algorithm=grpo")


def test_a_comparison_is_not_a_recipe(write):
    text = "base: demo.yaml\nseeds: [0]\noutput: out\narms: {dro: {}}\n"
    assert "is a comparison, not a recipe: dro-rl compare" in problem(write(text))


def test_an_algorithm_of_another_kind_keeps_samples_and_train_alone(write):
    """Of the recipe that it extends: what means the same in every kind."""
    settings = "algorithm: {kind: dro, samples: 4, train: [selector], tau: per_token}\n"
    write(VALID + settings, "base.yaml")
    over = write("extends: base.yaml\nalgorithm: {kind: grpo, kl: 0.1}\n", "over.yaml")
    algorithm = load_recipe(over).algorithm
    assert (algorithm.kind, algorithm.samples, algorithm.train) == ("grpo", 4, ["selector"])
    assert algorithm.kl == 0.1
    own = write("extends: base.yaml\nalgorithm: {kind: grpo, samples: 3}\n", "own.yaml")
    assert load_recipe(own).algorithm.samples == 3
    same = write("extends: base.yaml\nalgorithm: {kind: dro, baseline: uniform}\n", "same.yaml")
    assert load_recipe(same).algorithm.tau == "per_token"


def test_another_kind_replaces_the_options_of_a_dro_that_was_not_named(write):
    """`algorithm: {tau: 2}` is DRO's, though it does not say so."""
    write(VALID + "algorithm: {samples: 4, tau: 2}\n", "base.yaml")
    over = write("extends: base.yaml\nalgorithm: {kind: rloo}\n", "over.yaml")
    algorithm = load_recipe(over).algorithm
    assert (algorithm.kind, algorithm.samples) == ("rloo", 4)


def test_a_section_of_another_kind_replaces_the_bases(write):
    """Elsewhere nothing means the same in every kind."""
    write(VALID, "base.yaml")
    over = write(
        "extends: base.yaml\ndata: {kind: hotpotqa, path: x.json}\n"
        "retrieval: {kind: bm25, candidates: 7}\n",
        "over.yaml",
    )
    recipe = load_recipe(over)
    assert recipe.data.kind == "hotpotqa" and recipe.data.evaluation_questions is None
    assert recipe.retrieval == Bm25Retrieval(kind="bm25", candidates=7)


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
    seconds = []
    for _ in range(3):
        start = time.monotonic()
        done = run_python("from dro_rl.cli import main; main()", "check", path, cwd=tmp_path)
        seconds.append(time.monotonic() - start)
        assert done.returncode == 0, done.stderr
    assert statistics.median(seconds) < 1.5, seconds
    assert "documents: 5" in done.stdout and "temperature: 1.0" in done.stdout  # defaults too
    assert "draws 8 selections of up to 5 of 10 documents" in done.stdout
    assert "nothing here says how large models/generator is" in done.stdout


def test_a_switch_is_not_a_number(tmp_path):
    with pytest.raises(UserError, match=r"training: iterations is not a switch"):
        load_recipe("recipes/demo.yaml", ["training.iterations=true"])


def test_a_default_kind_may_be_written_out(tmp_path):
    (tmp_path / "base.yaml").write_text("extends: demo.yaml\nalgorithm: {samples: 16}\n")
    (tmp_path / "child.yaml").write_text("extends: base.yaml\nalgorithm: {kind: dro}\n")
    assert load_recipe(str(tmp_path / "child.yaml")).algorithm.samples == 16
