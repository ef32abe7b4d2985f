"""Bad input on the command line: one message that says how to mend it, exit code 2, no trace.

They run in this process, through the same entry point: a process for each would take a minute.
"""

import socket
from functools import partial
from pathlib import Path

import pytest

from tests.commands import refused, run_here
from tests.small_experiment import QUESTIONS, Place, make_place, question

pytestmark = pytest.mark.unit


@pytest.fixture
def place(tmp_path, monkeypatch) -> Place:
    return make_place(tmp_path / "work", monkeypatch)


@pytest.fixture
def command(capsys):
    return partial(run_here, capsys)


# --- recipes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["train", "check", "warmup"])
def test_a_missing_recipe(place, command, name):
    before = place.files()
    refused(command(name, str(place.folder / "nothing.yaml")), "nothing.yaml: no such file")
    assert place.files() == before


def test_no_recipe_at_all(command):
    refused(command("train"), "which recipe?", "--resume RUN")


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("training.iteration=3", "did you mean iterations?"),
        ("training.iterations=many", "training.iterations: Input should be a valid integer"),
        ("selector.documents=9", "selector.documents (9) exceeds retrieval.candidates (4)"),
        ("training.iterations", "write section.key=value"),
    ],
)
def test_a_bad_setting(place, command, override, told):
    before = place.files()
    refused(command("train", place.recipe, override), told)
    assert place.files() == before


def test_a_malformed_recipe(place, command):
    Path(place.recipe).write_text("data:\n  kind: [jsonl\nretrieval: {}\n")
    refused(command("train", place.recipe), "recipe.yaml, line 3")


def test_overrides_come_from_the_environment_too(place, command, monkeypatch):
    monkeypatch.setenv("DRO_RL_OVERRIDES", "training.seed=7 algorithm.tau=2")
    code, out, _ = command("check", place.recipe)
    assert code == 0 and "seed: 7" in out and "tau: 2.0" in out
    code, out, _ = command("check", place.recipe, "training.seed=8")
    assert code == 0 and "seed: 8" in out


def test_unreadable_overrides_in_the_environment(place, command, monkeypatch):
    monkeypatch.setenv("DRO_RL_OVERRIDES", "tracking.run_dir='half")
    refused(command("check", place.recipe), "DRO_RL_OVERRIDES")


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n"])
def test_check_survives_a_broken_weights_file(place, command, content):
    (place.folder / "model" / "model.safetensors").write_bytes(content)
    code, out, err = command("check", place.recipe)
    assert code == 0, err
    assert "nothing here says how large" in out


# --- data ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([*QUESTIONS[:2], '{"id": "broken', *QUESTIONS[2:]], "line 3"),
        ([question(0), question(1, answers=[]), *QUESTIONS[2:]], "line 2: answers"),
        (
            [*QUESTIONS[:5], question(5, documents=QUESTIONS[5]["documents"][:1])],
            "'q5' has 1 candidate documents, fewer than the 2",
        ),
        ([""], "holds no questions"),
        (QUESTIONS[:2], "leaves nothing to train on"),
        ([*QUESTIONS[:5], question(0, id="again")], "both in train"),
    ],
    ids=["broken line", "no answers", "few documents", "empty", "none to train on", "leak"],
)
def test_bad_data(place, command, rows, told):
    place.write_questions(rows)
    before = place.files()
    refused(command("train", place.recipe), told)
    assert place.files() == before


def test_a_missing_data_file(place, command):
    place.data.unlink()
    refused(command("train", place.recipe), f"cannot read {place.data}", "set data.path")
    assert not place.run.parent.exists()


def test_an_empty_corpus(place, command):
    place.write_questions([question(i, documents=[]) for i in range(6)])
    cache = f"retrieval.cache_dir={place.folder / 'cache'}"
    before = place.files()
    refused(command("train", place.recipe, "retrieval.kind=bm25", cache), "the corpus is empty")
    assert place.files() == before


# --- models -------------------------------------------------------------------------------------


def break_model(place: Place, what: str) -> tuple[list[str], str]:
    """Overrides that break a policy's model, and what the message must say."""
    folder = place.folder / "model"
    if what == "no model in the folder":
        (folder / "config.json").unlink()
        return [], f"{folder}: not a model's folder"
    if what == "no such folder":
        return ["generator.model=./nowhere/model"], "./nowhere/model: no such folder"
    if what == "no tokenizer":
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).unlink()
        return [], "its tokenizer could not be loaded"
    if what == "no weights":
        (folder / "model.safetensors").unlink()
        return [], "its model could not be loaded"
    if what == "no chat template":
        return ["generator.prompt=chat"], "needs a tokenizer with a chat template"
    if what == "short context":
        return ["selector.max_length=300"], "max_length 300 exceeds the context"
    if what == "prompt longer than the selector's context":
        long = question(4, question="Who keeps the northern lake " * 40 + "?")
        place.write_questions([*QUESTIONS[:4], long, QUESTIONS[5]])  # the first held-out question
        return [], "Who keeps the northern lake"
    # The selector reads the titles of all four documents, the generator those of one: it is
    # not the question with the longest selector prompt that is too long for the generator.
    titled = [{"title": "Lake Orsa " * 12, "text": ""} for _ in range(4)]
    few = ["selector.documents=1", "generator.max_length=106"]
    long = question(4, question="Who keeps " + "zqxj " * 20)
    place.write_questions([question(0, documents=titled), *QUESTIONS[1:4], long, QUESTIONS[5]])
    return few, "question 'Who keeps zqxj zqxj"


MODELS = [
    "no model in the folder",
    "no such folder",
    "no tokenizer",
    "no weights",
    "no chat template",
    "short context",
    "prompt longer than the selector's context",
    "prompt longer than the generator's context",
]


@pytest.mark.parametrize("what", MODELS)
def test_a_bad_model(place, command, what):
    overrides, told = break_model(place, what)
    before = place.files()
    refused(command("train", place.recipe, *overrides), told)
    assert place.files() == before


def unused_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.mark.parametrize("what", [w for w in MODELS if w != "no weights"])
def test_a_bad_model_is_told_before_any_process_is_started(place, command, what):
    """Before Ray is asked for anything: here it would say that nobody answers."""
    overrides, told = break_model(place, what)
    ray = ["cluster.mode=ray", f"cluster.address=127.0.0.1:{unused_port()}"]
    refused(command("train", place.recipe, *overrides, *ray), told)


# --- places -------------------------------------------------------------------------------------


def test_a_run_directory_that_cannot_be_written(place, command):
    before = place.files()
    run_dir = place.data / "below" / "a" / "file"
    refused(
        command("train", place.recipe, f"tracking.run_dir={run_dir}"),
        f"{run_dir}: cannot be written",
        "tracking.run_dir=",
    )
    assert place.files() == before


@pytest.mark.parametrize(
    "words",
    [("train", "--resume"), ("evaluate",), ("answer",)],
    ids=["train --resume", "evaluate", "answer"],
)
def test_a_folder_that_is_no_run(place, command, words):
    before = place.files()
    question = ("Who?",) if words == ("answer",) else ()
    refused(command(*words, str(place.folder), *question), f"{place.folder}: not a run directory")
    assert place.files() == before


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["selector.documents=1"], "selector.documents: 2 -> 1"),
        (["recipe.yaml"], "uses the run's own recipe"),
        (["training.iterations=none"], "training.iterations"),
    ],
)
def test_a_resumed_run_stays_the_same_experiment(place, command, words, told):
    place.start_run()
    before = place.files()
    refused(command("train", "--resume", str(place.run), *words), told)
    assert place.files() == before


def test_a_checkpoint_that_is_not_there(place, command):
    place.start_run()
    for words in (("evaluate", str(place.run)), ("answer", str(place.run), "Who?")):
        refused(command(*words, "--iteration", "3"), "no checkpoint of iteration 3")


# --- Ray and rewards ----------------------------------------------------------------------------


def test_a_ray_address_that_does_not_answer(place, command):
    address = f"127.0.0.1:{unused_port()}"
    before = place.files()
    refused(
        command("train", place.recipe, "cluster.mode=ray", f"cluster.address={address}"),
        f"cluster.address {address}: nothing answers there",
        "ray start --head",
    )
    assert place.files() == before


@pytest.mark.parametrize(
    ("reward", "told"),
    [
        ("rewards/nothing.py", "rewards/nothing.py: no such file"),
        ("nothing", "give a file such as rewards/f1.py"),
        ("no_such_module:Mine", "no module no_such_module"),
    ],
)
def test_a_reward_that_is_not_there(place, command, reward, told):
    before = place.files()
    refused(command("train", place.recipe, f"reward={reward}"), told)
    assert place.files() == before


def test_an_answer_longer_than_the_generator_may_write(place, command):
    place.write_questions([*QUESTIONS[:5], question(5, answers=["Mila Brandt " * 20])])
    told = ("example", "answer 'Mila Brandt", "generator.max_new_tokens")
    refused(command("train", place.recipe), *told)
    assert not place.run.exists()


def test_a_selection_longer_than_the_selector_may_write(place, command):
    refused(command("train", place.recipe, "selector.max_new_tokens=3"), "selector.max_new_tokens")
