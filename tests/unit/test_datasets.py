"""The paper's data sets as their publishers ship them: what becomes of a record of each."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import datasets.config
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter

from dro_rl.data import load_examples
from dro_rl.errors import UserError
from dro_rl.recipe_file import load_recipe
from dro_rl.records import Document, Example
from dro_rl.sections.data import Data
from tests.real_data import REAL, needs_real_data

pytestmark = pytest.mark.unit


def section(**settings: Any) -> Any:
    return TypeAdapter(Data).validate_python(settings)


def read(kind: str, path: Path | str, **settings: Any) -> list[Example]:
    """All examples of a file, its last one held out."""
    split = load_examples(
        section(kind=kind, path=str(path), evaluation_questions=1, **settings), seed=0
    )
    return [*split.train, *split.evaluation]


def write_list(path: Path, *records: Any) -> Path:
    path.write_text(json.dumps(records))
    return path


def write_lines(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def write_parquet(path: Path, *records: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(records)), path)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


# --- MuSiQue ------------------------------------------------------------------------------------


def musique(name: str, **changes: Any) -> dict[str, Any]:
    row = {
        "id": f"2hop__{name}",
        "paragraphs": [
            {"idx": 0, "title": "Book", "paragraph_text": "By Ann.", "is_supporting": True},
            {"idx": 1, "title": "Else", "paragraph_text": "Nothing.", "is_supporting": False},
            {"idx": 2, "title": "Ann", "paragraph_text": "Of Oslo.", "is_supporting": True},
        ],
        "question": f"Where is the author of {name} from?",
        "question_decomposition": [{"id": 1, "question": "...", "answer": "Ann"}],
        "answer": "Oslo",
        "answer_aliases": ["Christiania", "Oslo"],
        "answerable": True,
    }
    return row | changes


MUSIQUE = Example(
    "2hop__a",
    "Where is the author of a from?",
    ("Oslo", "Christiania"),
    (
        Document("Book", "By Ann.", True),
        Document("Else", "Nothing."),
        Document("Ann", "Of Oslo.", True),
    ),
)


def test_musique_keeps_aliases_and_marks_supporting_paragraphs(tmp_path):
    path = write_lines(tmp_path / "musique.jsonl", musique("a"), musique("b"))
    assert read("musique", path)[0] == MUSIQUE


def test_musique_reads_the_hubs_layout(tmp_path):
    for split, name in (("train", "a"), ("validation", "b")):
        write_parquet(
            tmp_path / "musique" / "data" / f"{split}-00000-of-00001.parquet", musique(name)
        )
    split = load_examples(section(kind="musique", path=str(tmp_path / "musique")), seed=0)
    assert split.train == [MUSIQUE]
    assert [e.id for e in split.evaluation] == ["2hop__b"]


def test_musiques_unanswerable_questions_are_left_out(tmp_path):
    path = write_lines(
        tmp_path / "full.jsonl", musique("a"), musique("a", answerable=False), musique("b")
    )
    assert [e.id for e in read("musique", path)] == ["2hop__a", "2hop__b"]


# --- 2WikiMultihopQA ----------------------------------------------------------------------------


def wikimultihop(name: str, **changes: Any) -> dict[str, Any]:
    row = {
        "_id": name,
        "type": "compositional",
        "question": f"Who is the mother of the author of {name}?",
        "context": [["Book", ["By Ann.", "Long."]], ["Ann", ["Born to Eve."]], ["Else", []]],
        "supporting_facts": [["Book", 0], ["Ann", 0]],
        "evidences": [["Book", "author", "Ann"], ["Ann", "mother", "Eve"]],
        "answer": "Eve",
        "evidences_id": [],
        "answer_id": "Q2",
    }
    return row | changes


WIKIMULTIHOP = Example(
    "a",
    "Who is the mother of the author of a?",
    ("Eve",),
    (
        Document("Book", "By Ann. Long.", True),
        Document("Ann", "Born to Eve.", True),
        Document("Else", ""),
    ),
    metric="hotpotqa",
)


def test_wikimultihop_reads_the_publishers_format(tmp_path):
    path = write_list(tmp_path / "dev.json", wikimultihop("a"), wikimultihop("b"))
    assert read("wikimultihop", path)[0] == WIKIMULTIHOP


def test_wikimultihops_aliases_are_further_answers(tmp_path):
    path = write_list(tmp_path / "dev.json", wikimultihop("a"), wikimultihop("b", answer_id=None))
    aliases = write_lines(
        tmp_path / "id_aliases.json",
        {"Q_id": "Q1", "aliases": ["Adam"], "demonyms": []},
        {"Q_id": "Q2", "aliases": ["Eva", "Eve"], "demonyms": ["Evean"]},
    )
    first, second = read("wikimultihop", path, aliases_path=str(aliases))
    assert first.answers == ("Eve", "Eva", "Evean")
    assert second.answers == ("Eve",)


def columns(row: dict[str, Any]) -> dict[str, Any]:
    """As in the hub's copies that keep structs of lists."""
    facts, context = row["supporting_facts"], row["context"]
    return row | {
        "supporting_facts": {"title": [t for t, _ in facts], "sent_id": [s for _, s in facts]},
        "context": {"title": [t for t, _ in context], "content": [s for _, s in context]},
    }


def strings(row: dict[str, Any]) -> dict[str, Any]:
    """As in the hub's copies that keep JSON in strings."""
    return row | {key: json.dumps(row[key]) for key in ("supporting_facts", "context", "evidences")}


@pytest.mark.parametrize("layout", [columns, strings])
def test_wikimultihop_reads_the_hubs_layouts(tmp_path, layout):
    for split, name in (("train", "a"), ("dev", "b")):
        write_parquet(tmp_path / "2wiki" / f"{split}.parquet", layout(wikimultihop(name)))
    data = section(kind="wikimultihop", path=str(tmp_path / "2wiki"), evaluation_split="dev")
    split = load_examples(data, seed=0)
    assert split.train == [WIKIMULTIHOP]
    assert [e.id for e in split.evaluation] == ["b"]


# --- Natural Questions --------------------------------------------------------------------------


def test_nq_open_has_several_answers_and_no_passages(tmp_path):
    path = write_lines(
        tmp_path / "NQ-open.dev.jsonl",
        {"question": "who wrote a", "answer": ["Ann", "Ann Lee"]},
        {"question": "who wrote b", "answer": ["Bob"]},
    )
    assert read("natural_questions", path) == [
        Example("NQ-open.dev.jsonl-1", "who wrote a", ("Ann", "Ann Lee")),
        Example("NQ-open.dev.jsonl-2", "who wrote b", ("Bob",)),
    ]


def dpr(name: str) -> dict[str, Any]:
    def passage(text: str) -> dict[str, Any]:
        return {"title": name, "text": text, "score": 7.5, "title_score": 0, "passage_id": "12"}

    return {
        "dataset": "nq_dev_psgs_w100",
        "question": f"who wrote {name}",
        "answers": ["Ann"],
        "positive_ctxs": [passage("By Ann.")],
        "negative_ctxs": [passage("A random one.")],
        "hard_negative_ctxs": [passage("By whom?"), passage("By somebody.")],
    }


def test_dprs_positive_passages_are_gold_and_hard_negatives_beside_them(tmp_path):
    path = write_list(tmp_path / "biencoder-nq-dev.json", dpr("a"), dpr("b"))
    gold, first, second = (
        Document("a", "By Ann.", True),
        Document("a", "By whom?"),
        Document("a", "By somebody."),
    )
    assert read("natural_questions", path)[0].candidates == (gold, first, second)
    limited = read("natural_questions", path, hard_negatives=1)[0]
    assert limited.candidates == (gold, first)


def test_readers_passages_are_gold_by_annotation_or_else_by_answer(tmp_path):
    ctxs = [
        {"id": "1", "title": "A", "text": "By Ann.", "hasanswer": True, "isgold": False},
        {"id": "2", "title": None, "text": "Really by Ann.", "hasanswer": True, "isgold": True},
        {"id": "3", "title": "C", "text": "Ann.", "has_answer": True},
        {"id": "4", "title": "D", "text": "Nothing.", "score": "80.1"},
    ]
    rows = [{"question": f"who wrote {n}", "answers": ["Ann"], "ctxs": ctxs} for n in "ab"]
    path = write_lines(tmp_path / "nq.jsonl", *rows)
    documents = read("natural_questions", path)[0].candidates
    assert [d.is_gold for d in documents] == [False, True, True, False]
    assert [d.title for d in documents] == ["A", "", "C", "D"]


# --- Wizard of Wikipedia ------------------------------------------------------------------------


def wizard() -> dict[str, Any]:
    """The wizard opens, and speaks again with a checked passage of the topic, of its own last turn,
    of the apprentice's, with none, and with a sentence alone."""

    def turn(speaker: str, text: str, retrieved: list[str], **checked: Any) -> dict[str, Any]:
        passages = [{title: [f"{title} is old.", f"{title} is big."]} for title in retrieved]
        return {"speaker": speaker, "text": text, "retrieved_passages": passages, **checked}

    nothing = {"no_passages_used": "no_passages_used"}
    sea = {
        "checked_passage": {"self_1": "Sea"},
        "checked_sentence": {"self_Sea_0": "Sea is old."},
    }
    return {
        "chosen_topic": "Blue",
        "persona": "i like colours.",
        "chosen_topic_passage": ["Blue is a colour.", "So is red."],
        "dialog": [
            turn("0_Wizard", "Hello. ", ["Sky", "Sea"], checked_sentence=nothing),
            turn("1_Apprentice", "What is blue?", ["Sky", "Paint"]),
            turn("0_Wizard", "The sea.", ["Ship"], **sea),
            turn("1_Apprentice", "And the sky?", ["Air"]),
            turn("0_Wizard", "Yes.", [], checked_passage={}, checked_sentence=nothing),
            turn("1_Apprentice", "Is it big?", ["Blue"]),
            turn("0_Wizard", "Very.", [], checked_sentence={"partner_Blue_0": "So is red."}),
        ],
    }


def test_a_wizards_turn_is_a_question_with_what_it_was_shown(tmp_path):
    path = write_list(tmp_path / "train.json", wizard())
    first, second, third = read("wizard_of_wikipedia", path)
    assert first.question == "Blue\nHello.\nWhat is blue?"
    assert first.answers == ("The sea.",)
    assert first.id == "train.json-1-2"
    assert first.candidates == (
        Document("Blue", "Blue is a colour. So is red."),
        Document("Sky", "Sky is old. Sky is big."),  # of the apprentice's turn, then of its own
        Document("Paint", "Paint is old. Paint is big."),
        Document("Sea", "Sea is old. Sea is big.", is_gold=True),
    )
    assert [d.title for d in second.candidates] == ["Blue", "Air", "Ship"]
    assert not any(d.is_gold for d in second.candidates)
    assert third.candidates == (Document("Blue", "Blue is a colour. So is red.", is_gold=True),)


@pytest.mark.parametrize(
    ("checked", "gold"),
    [
        ({"checked_passage": {"a": "Sea"}, "checked_sentence": {"a": "Sky is old."}}, ["Sky"]),
        ({"checked_passage": {"a": "Sea"}, "checked_sentence": {"a": "no_passages_used"}}, []),
        ({"checked_passage": {"a": "Sea"}, "checked_sentence": {}}, []),
        ({"checked_passage": {"a": "Sea"}, "checked_sentence": {"a": "old"}}, []),
        ({"checked_passage": {}, "checked_sentence": {"a": "Paint is big."}}, ["Paint"]),
    ],
)
def test_the_wizards_gold_passage_holds_the_checked_sentence(tmp_path, checked, gold):
    dialogue = wizard()
    dialogue["dialog"][2].update(checked)
    first, *_ = read("wizard_of_wikipedia", write_list(tmp_path / "train.json", dialogue))
    assert [d.title for d in first.candidates if d.is_gold] == gold


def test_kilts_turn_without_an_answer_is_no_question(tmp_path):
    def turn(name: str, *output: Any) -> dict[str, Any]:
        return {"id": name, "input": f"Hello {name}", "output": list(output)}

    answered = [turn(name, {"answer": "Yes."}) for name in "ab"]
    path = write_lines(tmp_path / "wow.jsonl", turn("c", {"provenance": []}), turn("d"), *answered)
    assert [e.id for e in read("wizard_of_wikipedia", path)] == ["a", "b"]


def test_kilts_wizard_has_answers_and_no_passages(tmp_path):
    def turn(name: str) -> dict[str, Any]:
        provenance = [{"wikipedia_id": "12", "title": "Blue", "start_paragraph_id": 1}]
        output = [{"answer": "The sea."}, {"provenance": provenance}]
        return {"id": name, "input": f"Hello {name}\nWhat is blue?", "output": output}

    path = write_lines(tmp_path / "wow-dev-kilt.jsonl", turn("a"), turn("b"))
    expected = Example("a", "Hello a\nWhat is blue?", ("The sea.",))
    assert read("wizard_of_wikipedia", path)[0] == expected


# --- the DRO authors' format --------------------------------------------------------------------


def dro(**changes: Any) -> dict[str, Any]:
    whole = "Title: Great Lakes. Content: The lakes meet the sea. They are five."
    row = {
        "question": "where do the lakes meet the sea",
        "answer": "the Saint Lawrence River",
        "positive": [whole, whole, "Title: River. Content: It leaves the lakes."],
        "query_id": "query_1",
        "retrieval": [
            'Title: "Big O" Text:  An anime.',
            'Title: "Great Lakes" Text:  The lakes meet  the sea.',
            'Title: "Great Lakes" Text:  A region.',
        ],
    }
    return row | changes


def test_the_authors_format_ranks_retrieved_passages_and_adds_missing_positive_ones(tmp_path):
    path = write_list(tmp_path / "nq_train.json", dro(), dro(question="another"))
    first, _ = read("dro", path)
    assert first == Example(
        "nq_train.json-1",
        "where do the lakes meet the sea",
        ("the Saint Lawrence River",),
        (
            Document("Big O", "An anime."),
            Document("Great Lakes", "The lakes meet  the sea.", is_gold=True),
            Document("Great Lakes", "A region."),
            Document("River", "It leaves the lakes.", is_gold=True),
        ),
    )


def test_the_authors_format_marks_every_cut_of_a_positive_passage(tmp_path):
    cuts = ["Title: Great Lakes. Content: The lakes meet the sea.", "Title: Great Lakes. Content: "]
    again = "Title: Great Lakes. Content: They are five."
    row = dro(retrieval=[cuts[0], again, cuts[1]])
    path = write_list(tmp_path / "nq_train.json", row, dro(question="another"))
    documents = read("dro", path)[0].candidates
    assert [d.is_gold for d in documents] == [True, True, False, True]
    assert [d.title for d in documents] == ["Great Lakes"] * 3 + ["River"]


def test_the_authors_format_knows_hotpotqas_metric_and_passages_without_title(tmp_path):
    path = write_list(
        tmp_path / "hotpot.json",
        dro(dataset="hotpotqa", retrieval=["Just text."], answer=["yes", "yes, they do"]),
        dro(question="another"),
    )
    first, second = read("dro", path)
    assert (first.metric, second.metric) == ("hotpotqa", "squad")
    assert first.answers == ("yes", "yes, they do")
    assert first.candidates[0] == Document("", "Just text.")


# --- what all share -----------------------------------------------------------------------------

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
