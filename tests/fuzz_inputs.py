"""What is fuzzed of what users and models write: recipes, data, selections."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st
from pydantic import TypeAdapter

from dro_rl.comparison.spec import load_comparison
from dro_rl.data import read_file
from dro_rl.estimate import in_words
from dro_rl.prompts import read_selection, write_selection
from dro_rl.recipe_file import load_recipe, localise, make_recipe
from dro_rl.retrieval.passages import read_passages
from dro_rl.sections.data import Data
from tests.fuzzing import Target, written
from tests.hostile_yaml import HOSTILE_YAML
from tests.strategies import PLAIN, SELECTIONS, TEXTS, broken, files, nearly

ROOT = Path(__file__).resolve().parents[1]


# --- recipes --------------------------------------------------------------------------------------

_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # the C one is twenty times as fast
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_RECIPES = [yaml.safe_load(path.read_text()) for path in sorted((ROOT / "recipes").rglob("*.yaml"))]
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
]
