"""Reading recipes: what is accepted, and what a user is told of everything else."""

import pytest

from dro_rl.errors import UserError
from dro_rl.estimate import in_words
from dro_rl.recipe_file import load_recipe
from dro_rl.sections.retrieval import Bm25Retrieval
from dro_rl.sections.training import EarlyStop
from tests.written_recipes import problem, writer

pytestmark = pytest.mark.unit


@pytest.fixture
def write(tmp_path):
    return writer(tmp_path)


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


def test_a_switch_is_not_a_number(tmp_path):
    with pytest.raises(UserError, match=r"training: iterations is not a switch"):
        load_recipe("recipes/demo.yaml", ["training.iterations=true"])


# --- which iterations are evaluated ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("every", "evaluated"), [(1, [0, 1, 2, 3, 4, 5, 6, 7]), (3, [0, 3, 6, 7]), (99, [0, 7])]
)
def test_the_start_every_so_many_iterations_and_the_last_are_evaluated(write, every, evaluated):
    recipe = load_recipe(write(), [f"evaluation.every={every}", "training.iterations=7"])
    assert [i for i in range(8) if recipe.evaluates(i)] == evaluated
    told = "\n".join(in_words(recipe))
    assert (f"are evaluated {len(evaluated)} times" in told) == (every > 1)


def test_patience_counts_evaluations_and_the_best_is_an_iteration():
    stop = EarlyStop(metric="em", patience=2)
    found = [{"iteration": 4 * i, "em": em} for i, em in enumerate((0.5, 0.6, 0.6, 0.6))]
    assert [stop.stops(found[: i + 1]) for i in range(4)] == [False, False, False, True]
    assert [stop.best(found[: i + 1]) for i in range(4)] == [0, 4, 4, 4]
