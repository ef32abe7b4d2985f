"""What all data sets of publishers share: limits, packing, messages, recipes."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from typing import Any

import pytest

from dro_rl.data import load_examples
from dro_rl.errors import UserError
from dro_rl.recipe_file import load_recipe
from tests.made_data import dpr, dro, musique, read, section, wikimultihop, write_lines, write_list
from tests.real_data import REAL, needs_real_data

pytestmark = pytest.mark.unit


RECORDS = {
    "musique": musique,
    "wikimultihop": wikimultihop,
    "natural_questions": dpr,
    "wizard_of_wikipedia": lambda name: {"id": name, "input": name, "output": [{"answer": "Yes."}]},
    "dro": lambda name: dro(question=name),
}


@pytest.mark.parametrize("kind", RECORDS)
def test_lists_and_lines_gzipped_or_not_say_the_same(tmp_path, kind):
    rows = [RECORDS[kind](name) for name in "abc"]
    files = (write_list(tmp_path / "x.json", *rows), write_lines(tmp_path / "x.jsonl", *rows))
    read_all = []
    for file in files:
        packed = tmp_path / f"{file.name}.gz"
        packed.write_bytes(gzip.compress(file.read_bytes()))
        read_all += [read(kind, file), read(kind, packed)]
    told = [[(e.question, e.answers, e.candidates) for e in examples] for examples in read_all]
    assert len(told[0]) == 3 and told == [told[0]] * 4


@pytest.mark.parametrize("kind", RECORDS)
def test_a_record_of_another_kind_is_named_with_what_it_should_be(tmp_path, kind):
    good = [RECORDS[kind](name) for name in "ab"]
    path = write_list(tmp_path / "x.json", *good, {"id": "c", "query": "who?"})
    with pytest.raises(UserError, match=r"x.json, question 3: \w+: Field required; .+"):
        read(kind, path)


def test_reading_stops_at_the_limits(tmp_path):
    lines = [json.dumps(musique(name)) for name in "abcd"]
    train, dev = tmp_path / "train.jsonl", tmp_path / "dev.jsonl"
    train.write_text("\n".join([*lines[:2], "not read any more"]))
    dev.write_text("\n".join([*lines[2:], "nor this"]))
    data = section(
        kind="musique",
        path=str(train),
        evaluation_path=str(dev),
        train_questions=2,
        evaluation_questions=1,
    )
    split = load_examples(data, seed=0)
    assert [e.id for e in split.train] == ["2hop__a", "2hop__b"]
    assert [e.id for e in split.evaluation] == ["2hop__c"]


@pytest.mark.parametrize("write", [write_list, write_lines])
def test_a_file_never_sits_in_memory_beside_its_examples(tmp_path, write):
    text = "A paragraph of some length. " * 20
    paragraphs = [{"title": "Book", "paragraph_text": text, "is_supporting": True}] * 10
    path = write(tmp_path / "x", *(musique(str(n), paragraphs=paragraphs) for n in range(400)))
    data = section(kind="musique", path=str(path), evaluation_questions=1)
    tracemalloc.start()
    try:
        split = load_examples(data, seed=0)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(split.train) == 399
    assert kept > 2e6 and peak < 1.2 * kept


def normalised(name: str) -> dict[str, Any]:
    """Questions of a file that was made from the publishers' by another program: their answers and
    documents, in no order."""
    found = {}
    for line in (REAL / name).read_text().splitlines():
        row = json.loads(line)
        documents = {(d["title"], d["text"], d["is_gold"]) for d in row["documents"]}
        found[row["question"]] = (set(row["answers"]), documents)
    return found


@needs_real_data
@pytest.mark.parametrize(
    ("kind", "others"),
    [
        ("hotpotqa", ("hotpotqa_validation.jsonl", "hotpotqa_train.jsonl")),
        ("musique", ("musique.jsonl",)),
    ],
)
def test_the_publishers_files_say_what_others_read_in_them(kind, others):
    def plain(text: str) -> str:
        return " ".join(text.split())

    known = {q: said for name in others for q, said in normalised(name).items()}
    examples = read(kind, REAL / "official" / f"{kind}_official_100.json")
    compared = [e for e in examples if plain(e.question) in known]
    assert len(examples) == 100 and len(compared) > 90
    for e in compared:
        documents = {(plain(d.title), plain(d.text), d.is_gold) for d in e.candidates}
        assert ({plain(a) for a in e.answers}, documents) == known[plain(e.question)]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("dro_hotpot", "hotpotqa"),
        ("dro_musique", "musique"),
        ("dro_wikimultihop", "wikimultihop"),
        ("dro_wizard", "wizard_of_wikipedia"),
        ("dro_authors", "dro"),
    ],
)
def test_the_recipe_of_a_set_writes_to_a_run_of_its_own(name, kind):
    recipe = load_recipe(f"recipes/{name}.yaml")
    assert recipe.data.kind == kind
    places = (recipe.selector.model, recipe.generator.model, recipe.tracking.run_dir)
    assert [place.split("/")[1].removesuffix("-warmup") for place in places] == [name] * 3
