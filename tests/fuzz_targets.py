"""What is fuzzed: a strategy of cases, and what is done with one of them.

tests/fuzzing.py runs them: tests/integration/test_fuzz.py some hundred cases of each target,
benchmarks/fuzz.py ten thousand.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st
from pydantic import TypeAdapter

from dro_rl import checkpoint, durable, remote
from dro_rl.comparison.spec import load_comparison
from dro_rl.data import read_file
from dro_rl.errors import UserError
from dro_rl.estimate import in_words
from dro_rl.policy.causal_lm import load_model, prompt_writer
from dro_rl.prompts import read_selection, write_selection
from dro_rl.recipe_file import load_recipe, localise, make_recipe
from dro_rl.records import Document, Example, Outcome
from dro_rl.retrieval.http import ask
from dro_rl.retrieval.passages import read_passages
from dro_rl.reward import load_reward
from dro_rl.reward.checks import usable_scores
from dro_rl.reward.remote import RemoteReward
from dro_rl.reward.server import make_app
from dro_rl.sections.data import Data
from dro_rl.sections.policy import PolicySection
from dro_rl.sections.retrieval import HttpRetrieval
from dro_rl.tracking.report import write_report
from dro_rl.tracking.run_directory import RunDirectory
from tests.fuzzing import Target, written
from tests.made_runs import make_run, question
from tests.strategies import PLAIN, SELECTIONS, TEXTS, broken, files, nearly

ROOT = Path(__file__).resolve().parents[1]


# --- recipes --------------------------------------------------------------------------------------

_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # the C one is twenty times as fast
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_RECIPES = [yaml.safe_load(path.read_text()) for path in sorted((ROOT / "recipes").rglob("*.yaml"))]
HOSTILE_YAML = [
    "a: &a [x, x]\n" + "".join(f"{b}: &{b} [{', '.join(f'*{a}' for _ in range(9))}]\n"
                              for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
    "a: &a {x: 1}\nb: &b {<<: [*a, *a]}\n"
    + "".join(f"{c}: &{c} {{<<: [*{b}, *{b}]}}\n" for b, c in zip("bcdefg", "cdefgh", strict=True)),
    "data: &d {kind: facts, more: *d}\n",
    "data: " + "[" * 200 + "]" * 200,
    "data: " + "[" * 5000,
    "data: {kind: !!python/object/apply:os.system ['true']}",
    "data: !!bool perhaps",
    "data: !!timestamp now",
    "data: !!int ''",
    "data: 0001-01-01T00:00:00+23:59",
    "data: !!binary /w==",
    "? {a: b}\n: c",
    "training: {seed: 0x" + "f" * 5000 + "}",
    "training: {seed: " + "9" * 5000 + "}",
    "extends: ~nobody/recipe.yaml",
    "extends: " + "x" * 5000,
    'extends: "a\\0b"',
]  # fmt: skip
_KEYS = sorted(
    {f"{section}.{key}" for r in _RECIPES for section, s in r.items() if isinstance(s, dict)
     for key in s}
)  # fmt: skip


@st.composite
def _recipe(draw: st.DrawFn) -> tuple[bytes, list[str]]:
    form = draw(st.integers(0, 9))
    if form == 0:
        content = draw(st.binary(max_size=200))
    elif form == 1:
        content = draw(st.text(max_size=200) | st.sampled_from(HOSTILE_YAML)).encode(
            errors="replace"
        )
    else:
        ascii_alone = draw(st.booleans())  # JSON is YAML
        text = json.dumps(draw(nearly(_RECIPES)), indent=1, ensure_ascii=ascii_alone)
        content = text.encode(errors="replace")
        if form < 4:
            content = draw(broken(content))
    return content, draw(st.just([]) | st.lists(_override(), max_size=2))


def _override() -> st.SearchStrategy[str]:
    values = PLAIN.map(lambda v: yaml.safe_dump(v, default_flow_style=True).strip()) | TEXTS
    keys = st.sampled_from(_KEYS) | st.text(max_size=12)
    return st.builds("{}={}".format, keys, values) | st.text(max_size=30)


def _run_recipe(folder: Path, case: tuple[bytes, list[str]]) -> None:
    content, overrides = case
    path = folder / "recipe.yaml"
    with written(path, content):
        if b"arms" in content:
            load_comparison(str(path), overrides)
            return
        recipe = localise(load_recipe(str(path), overrides))
        in_words(recipe)
        kept = yaml.dump(recipe.resolved(), Dumper=_DUMPER, allow_unicode=True)
        again = make_recipe(yaml.load(kept, _LOADER), "again")
        assert again == recipe  # what a run keeps is what it was given


# --- data -----------------------------------------------------------------------------------------

_PASSAGE = {"title": "Lyon", "text": "A city.", "is_gold": True}
_HOTPOT = {
    "_id": "a",
    "question": "Who?",
    "answer": "Lyon",
    "supporting_facts": [["Lyon", 0]],
    "context": [["Lyon", ["A city."]], ["Oslo", ["Another."]]],
}
_RECORDS: dict[str, list[Any]] = {
    "jsonl": [{"id": "a", "question": "Who?", "answers": ["Lyon"], "documents": [_PASSAGE]}],
    "hotpotqa": [_HOTPOT],
    "wikimultihop": [_HOTPOT | {"answer_id": "Q1"}],
    "musique": [
        {
            "id": "a",
            "question": "Who?",
            "answer": "Lyon",
            "answer_aliases": ["Lyons"],
            "answerable": True,
            "paragraphs": [
                {"idx": 0, "title": "Lyon", "paragraph_text": "A city.", "is_supporting": True}
            ],
        }
    ],
    "natural_questions": [
        {"question": "Who?", "answer": ["Lyon"]},
        {
            "question": "Who?",
            "answers": ["Lyon"],
            "positive_ctxs": [{"title": "Lyon", "text": "A city."}],
            "hard_negative_ctxs": [],
            "ctxs": [{"title": None, "text": "A city.", "has_answer": True}],
        },
    ],
    "wizard_of_wikipedia": [
        {
            "chosen_topic": "Lyon",
            "chosen_topic_passage": ["A city."],
            "dialog": [
                {"speaker": "1_Apprentice", "text": "Hello"},
                {
                    "speaker": "0_Wizard",
                    "text": "A city.",
                    "retrieved_passages": [{"Lyon": ["A city."]}],
                    "checked_passage": {"a": "Lyon"},
                    "checked_sentence": {"a": "A city."},
                },
            ],
        },
        {"id": "a", "input": "Who?", "output": [{"answer": "Lyon", "provenance": []}]},
    ],
    "dro": [
        {
            "question": "Who?",
            "answer": "Lyon",
            "positive": ["Title: Lyon. Content: A city."],
            "retrieval": ['Title: "Lyon" Text: A city.'],
            "dataset": "hotpotqa",
        }
    ],
    "passages": [_PASSAGE],
}
_SECTIONS = {
    kind: TypeAdapter(Data).validate_python({"kind": kind, "path": "x"})
    for kind in _RECORDS
    if kind != "passages"
}


@st.composite
def _data(draw: st.DrawFn) -> tuple[str, str, bytes]:
    """Kind, the file's ending, and what is in it."""
    kind = draw(st.sampled_from([*_RECORDS]))
    endings = ["tsv", "tsv.gz", "jsonl"] if kind == "passages" else ["json", "jsonl", "jsonl.gz"]
    ending = draw(st.sampled_from(endings))
    if ending == "tsv":
        return kind, ending, draw(broken(b"id\ttext\ttitle\n1\tA city.\tLyon\n2\tB\tOslo\n"))
    return kind, ending, draw(files(_RECORDS[kind]))


def _run_data(folder: Path, case: tuple[str, str, bytes]) -> None:
    kind, ending, content = case
    path = folder / f"data.{ending}"
    with written(path, content):
        if kind == "passages":
            assert all(d.text.strip() for d in read_passages(str(path)))
            return
        for example in read_file(_SECTIONS[kind].model_copy(update={"path": str(path)})):
            assert example.answers and example.question.strip()
            "".join((example.id, *example.answers)).encode()


def _parquet_rows() -> dict[str, list[Any]]:
    return {kind: _RECORDS[kind] for kind in ("musique", "hotpotqa", "natural_questions")}


@st.composite
def _parquet(draw: st.DrawFn) -> tuple[str, bytes]:
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = draw(st.sampled_from([*_parquet_rows()]))
    row = draw(nearly(_parquet_rows()[kind]))
    content = io.BytesIO()
    try:
        pq.write_table(pa.Table.from_pylist([row] * draw(st.integers(1, 3))), content)
    except (pa.ArrowException, ValueError, TypeError, OverflowError, AttributeError):
        return kind, draw(st.binary(max_size=64))  # no table has such a row
    return kind, draw(broken(content.getvalue()))


def _run_parquet(folder: Path, case: tuple[str, bytes]) -> None:
    kind, content = case
    configuration = "distractor" if kind == "hotpotqa" else None
    place = folder / (configuration or "")
    section = TypeAdapter(Data).validate_python(
        {"kind": kind, "path": str(folder), "configuration": configuration}
        if configuration
        else {"kind": kind, "path": str(folder)}
    )
    from dro_rl.data import _LAYOUTS
    from dro_rl.data.load import read_examples

    with written(place / "train-0.parquet", content):
        list(read_examples(section, _LAYOUTS[kind](section), section.path, "train"))


# --- what a selector writes -----------------------------------------------------------------------


def _run_selection(folder: Path, case: tuple[str, int, int]) -> None:
    text, n, k = case
    documents, malformed = read_selection(text, n, k)
    assert len(documents) <= k and len({*documents}) == len(documents)
    assert all(0 <= i < n for i in documents)
    if not malformed:
        assert documents
        assert read_selection(write_selection(documents), n, k) == (documents, False)


# --- what servers answer --------------------------------------------------------------------------

_EXAMPLE = Example("q1", "Where?", ("Lyon",), (Document("Lyon", "A city.", True),) * 2)
_OUTCOMES = [
    Outcome(_EXAMPLE, (0, 1), -2.5, 3, "Lyon"),
    Outcome(_EXAMPLE, (), -math.inf, 3, ""),
]
_URL = "http://127.0.0.1:9/score"
_ABOUT = {"scale": "log", "needs": ["answer"], "scores": []}
_REPLIES: dict[str, list[Any]] = {
    "about": [_ABOUT],
    "scores": [_ABOUT | {"scores": [[0.5, "-inf"]]}],
    "judge": [{"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]}],
    "passages": [{"results": [[{"title": "Lyon", "text": "A city.", "score": 1.5}]]}],
}


@st.composite
def _reply(draw: st.DrawFn) -> tuple[str, int, bytes]:
    asked = draw(st.sampled_from([*_REPLIES]))
    status = draw(st.sampled_from([200] * 8 + [204, 302, 404, 500]))
    content = json.dumps(draw(nearly(_REPLIES[asked]))).encode()
    return asked, status, draw(broken(content) | st.just(content) | st.binary(max_size=40))


@contextmanager
def _answering(status: int, content: bytes) -> Iterator[None]:
    original = remote._post_once
    remote._post_once = lambda *_: (status, content)
    try:
        yield
    finally:
        remote._post_once = original


@cache
def _judge() -> Any:
    from dro_rl.sections.reward import RewardSection

    section = {"use": "rewards/utility_judge.py", "url": _URL, "model": "m", "attempts": 1}
    return load_reward(RewardSection.model_validate(section))


def _run_reply(folder: Path, case: tuple[str, int, bytes]) -> None:
    asked, status, content = case
    settings = HttpRetrieval.model_validate({"kind": "http", "url": _URL})
    client = RemoteReward.__new__(RemoteReward)  # it asks when it is made
    client.url, client.timeout, client.attempts = _URL, 1, 1
    client.scale, client.needs = "log", ("answer",)
    with _answering(status, content):
        if asked == "about":
            RemoteReward(_URL, attempts=1)
        elif asked == "scores":
            assert len(usable_scores(client, _OUTCOMES)) == 2
        elif asked == "judge":
            assert _judge().score(_OUTCOMES)[0] in (0, 0.5, 1)
        else:
            monkey = remote.time.sleep
            remote.time.sleep = lambda _: None  # its attempts are its own affair
            try:
                (ranking,) = ask(settings, ["Where?"], 2)
            finally:
                remote.time.sleep = monkey
            assert all(math.isfinite(score) for _, score in ranking)


# --- what a reward server is asked ----------------------------------------------------------------

_QUESTION = {
    "id": "q1",
    "question": "Where?",
    "answers": ["Lyon"],
    "parts": [],
    "metric": "squad",
    "candidates": [{"title": "Lyon", "text": "A city.", "is_gold": True}],
    "scores": [1.0],
    "selections": [{"documents": [0], "log_likelihood": -1.0, "answer_tokens": 1, "answer": "a"}],
}


@st.composite
def _request(draw: st.DrawFn) -> bytes:
    content = json.dumps(draw(nearly([{"questions": [_QUESTION]}]))).encode()
    return draw(broken(content) | st.just(content) | st.binary(max_size=40))


@cache
def _client() -> Any:
    from fastapi.testclient import TestClient

    return TestClient(make_app(load_reward("rewards/f1.py")))  # it raises what the app does


def _run_request(folder: Path, body: bytes) -> None:
    reply = _client().post("/score", content=body)
    assert reply.status_code in (200, 400, 422), reply.text
    assert "Traceback" not in reply.text and json.loads(reply.content)
    if reply.status_code != 200:
        raise UserError(reply.text)


# --- what a run has left --------------------------------------------------------------------------


@st.composite
def _damage(draw: st.DrawFn, names: list[str]) -> tuple[str, Any]:
    """A file, and what becomes of its content."""
    name = draw(st.sampled_from(names))
    return name, draw(st.integers(0, 2**32 - 1))


def _damaged(content: bytes, seed: int) -> bytes:
    """Bits flipped, cut short, overwritten or emptied. The content is known only when a run was
    made, so what is drawn is a seed."""
    import random

    chance = random.Random(seed)
    kind = chance.randrange(4)
    if kind == 0:
        return content[: chance.randrange(len(content) + 1)]
    changed = bytearray(content)
    for _ in range(chance.randint(1, 4) if changed else 0):
        place = chance.randrange(len(changed))
        changed[place] = (
            chance.randrange(256) if kind == 1 else changed[place] ^ (1 << chance.randrange(8))
        )
    return bytes(changed)


_OF_A_RUN = [
    "recipe.yaml",
    "metrics.jsonl",
    "evaluation/questions.parquet",
    "evaluation/iteration-0000.json",
    "evaluation/iteration-0001.jsonl",
    "rollouts/iteration-0001.parquet",
    "rollouts/iteration-0001-questions.parquet",
]


def _make_run(folder: Path) -> None:
    make_run(folder / "run", [question(i) for i in range(2)], iterations=1)
    (folder / "report.html").touch()


def _run_run(folder: Path, case: tuple[str, int]) -> None:
    name, seed = case
    path = folder / "run" / name
    with written(path, _damaged(path.read_bytes(), seed)):
        run = RunDirectory.open(folder / "run")
        write_report([run], folder / "report.html")
        load_recipe(str(folder / "run" / "recipe.yaml"))


_OF_A_SAVE = ["manifest.json", "selector/model.safetensors", "selector.learner.pt", "known.json"]


def _make_save(folder: Path) -> None:
    run = make_run(folder / "run", [question(1)], iterations=1)
    place = checkpoint.folder_of(run, 1)
    with durable.aside(place) as partial:
        (partial / "selector").mkdir()
        for name in _OF_A_SAVE[1:]:
            (partial / name).write_bytes(name.encode() * 9)
    durable.publish(place)


def _run_save(folder: Path, case: tuple[str, int]) -> None:
    name, seed = case
    run = RunDirectory.open(folder / "run")
    path = checkpoint.folder_of(run, 1) / name
    whole = path.read_bytes()
    with written(path, _damaged(whole, seed)):
        assert checkpoint.latest_good(run, lambda text: None) == 1
        if name != _OF_A_SAVE[0]:  # white space in a manifest is no damage
            assert path.read_bytes() == whole  # whatever differs is noticed


_OF_A_MODEL = ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]


def _make_model(folder: Path) -> None:
    from tests.models import make_llama, make_word_tokenizer

    tokenizer = make_word_tokenizer(["Lyon", "Oslo"], identifiers=4)
    make_llama(folder / "model", tokenizer=tokenizer, hidden=32, layers=1, context=64)


def _run_model(folder: Path, case: tuple[str, int]) -> None:
    name, seed = case
    path = folder / "model" / name
    section = PolicySection(model=str(folder / "model"), max_length=64, max_new_tokens=8)
    with written(path, _damaged(path.read_bytes(), seed)):
        prompt_writer(section, section.model).answer("Where?", [])
        load_model(section, section.model, training=False)


TARGETS = [
    Target("recipes", _recipe(), _run_recipe),
    Target("data files", _data(), _run_data),
    Target(
        "Parquet files",
        _parquet(),
        _run_parquet,
        lambda folder: (folder / "distractor").mkdir(),
        cases_in_ci=50,
    ),
    Target(
        "selections",
        st.tuples(SELECTIONS, st.integers(1, 30), st.integers(1, 30)),
        _run_selection,
    ),
    Target("replies of servers", _reply(), _run_reply),
    Target("requests to a reward server", _request(), _run_request, cases_in_ci=100),
    Target("run directories", _damage(_OF_A_RUN), _run_run, _make_run, cases_in_ci=120),
    Target("saves", _damage(_OF_A_SAVE), _run_save, _make_save, cases_in_ci=100),
    Target("models", _damage(_OF_A_MODEL), _run_model, _make_model, cases_in_ci=80),
]
