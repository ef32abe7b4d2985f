"""The built-in world: what its examples promise, and its tokenizer."""

from __future__ import annotations

import hashlib
import re

import pytest
from transformers import AutoTokenizer

from dro_rl.data import load_examples
from dro_rl.data.facts import world
from dro_rl.data.facts.tokenizer import make_tokenizer, vocabulary
from dro_rl.data.facts.world import make_examples
from dro_rl.prompts import PromptWriter, read_selection, write_selection
from dro_rl.retrieval import add_candidates
from dro_rl.sections.data import FactsData
from dro_rl.sections.retrieval import Bm25Retrieval

pytestmark = pytest.mark.unit
IGNORED = -100  # PyTorch's label for a token without loss


@pytest.fixture(scope="module")
def examples():
    return make_examples(200, seed=0)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def writer(tokenizer):
    return PromptWriter(tokenizer, "plain", max_tokens=1000)


def key(document):
    """Person and relation that a document is about."""
    person, surface = document.title.split()[:2]
    return person, next(r for r in world.RELATIONS if surface in r.words)


def value(document):
    """What a document states: what stands between the relation's phrase and the mark after it."""
    claim = document.text.split(",")[0]
    return claim.removeprefix(key(document)[1].phrase).strip()


def is_rumour(document):
    return world.RUMOUR in document.title


def test_equal_seeds_make_equal_examples(examples):
    assert make_examples(200, seed=0) == examples
    assert make_examples(20, seed=1) != examples[:20]


def test_more_examples_extend_fewer(examples):
    assert make_examples(20, seed=0) == examples[:20]


def test_splits_share_no_question_with_its_documents(examples):
    evaluation = make_examples(200, seed=0, split="evaluation")
    assert not {e.candidates for e in examples} & {e.candidates for e in evaluation}
    assert not {e.id for e in examples} & {e.id for e in evaluation}


@pytest.mark.parametrize("documents", [4, 8, 20])
def test_candidates_are_as_many_as_asked_for_and_differ(documents):
    for example in make_examples(50, seed=0, documents=documents):
        assert len(set(example.candidates)) == documents


@pytest.mark.parametrize("documents", [3, 21])
def test_other_sizes_are_refused(documents):
    with pytest.raises(ValueError, match="4 to 20"):
        make_examples(1, seed=0, documents=documents)


def test_gold_documents_state_the_parts_and_no_other_document_answers(examples):
    for example in examples:
        gold = [d for d in example.candidates if d.is_gold]
        assert sorted(value(d) for d in gold) == sorted(example.parts)
        assert example.answers == (" and ".join(example.parts),)
        for document in gold:
            same = [d for d in example.candidates if key(d) == key(document) and not is_rumour(d)]
            assert same == [document]


def test_parts_stand_in_the_order_of_the_question(examples):
    for example in examples:
        gold = {key(d): value(d) for d in example.candidates if d.is_gold}
        asked = example.question.removeprefix("Name the ").rstrip(".").split(" and the ")
        assert tuple(gold[key(world.Document(a, ""))] for a in asked) == example.parts


def test_rumours_contradict_a_document_and_are_never_gold(examples):
    rumours = 0
    for example in examples:
        truth = {key(d): value(d) for d in example.candidates if not is_rumour(d)}
        for document in filter(is_rumour, example.candidates):
            assert not document.is_gold
            assert value(document) != truth[key(document)]
            rumours += 1
    assert rumours > len(examples)


def test_rumours_can_be_left_out():
    examples = make_examples(50, seed=0, rumours=0.0)
    assert not any(is_rumour(d) for e in examples for d in e.candidates)


def test_near_misses_abound(examples):
    near = []
    for example in examples:
        for person, relation in (key(d) for d in example.candidates if d.is_gold):
            keys = {key(d) for d in example.candidates} - {(person, relation)}
            near.append(sum((p == person) != (r == relation) for p, r in keys))
    assert sum(n > 0 for n in near) > 0.9 * len(near)
    assert sum(near) > 2 * len(near)


def test_a_lexical_retriever_likes_a_rumour_better_than_the_truth(examples):
    settings = Bm25Retrieval(kind="bm25", corpus="own", candidates=8, shuffle=False)
    better = []
    for example in add_candidates(examples, [], settings, seed=0, required=2):
        rank = {d.title: i for i, d in enumerate(example.candidates)}
        for title, place in rank.items():
            truth = title.removesuffix(" rumour")
            asked = truth.lower() in example.question.lower()
            if asked and truth != title and truth in rank:  # the same word for the relation
                better.append(place < rank[truth])
    assert len(better) > 5
    assert sum(better) > 0.9 * len(better)


def test_values_belong_to_one_relation_each():
    values = [v for relation in world.RELATIONS for v in relation.values]
    assert len(set(values)) == len(values)


def test_every_word_is_in_the_vocabulary(tokenizer, writer):
    assert len(tokenizer) == len(vocabulary())
    for example in make_examples(200, seed=3, documents=20):
        for prompt in (
            writer.select(example.question, example.candidates, 2),
            writer.answer(example.question, example.candidates),
        ):
            assert tokenizer.unk_token_id not in prompt.token_ids
            assert prompt.token_ids[0] == tokenizer.bos_token_id
            assert not prompt.truncated_documents
        assert tokenizer.unk_token_id not in writer.completion(example.answers[0])


def test_completions_round_trip(writer, examples):
    text = write_selection(range(20))
    assert writer.decode(writer.completion(text)) == text
    assert read_selection(writer.decode(writer.completion("[12] > [1]")), 20, 2) == ((11, 0), False)
    for example in examples:
        assert writer.decode(writer.completion(example.answers[0])) == example.answers[0]


def test_an_identifier_and_a_field_are_one_token_each(tokenizer):
    assert tokenizer.tokenize("Kovac trade [12]: pilot\nSelection: [1]") == [
        *("Kovac", "trade", "[12]", "pilot", "Selection:", "[1]"),
    ]


def test_offsets_let_a_long_document_be_cut(tokenizer):
    example = make_examples(1, seed=0)[0]
    writer = PromptWriter(tokenizer, "plain", max_tokens=70)
    prompt = writer.select(example.question, example.candidates, 2)
    assert len(prompt.token_ids) <= 70
    assert prompt.truncated_documents
    assert example.question.split()[2] in writer.decode(prompt.token_ids)


def test_the_tokenizer_survives_saving(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "Question: Name the Kovac hometown.\nSelection: [3] > [1]"
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.decode(loaded(" [3] > [1]", add_special_tokens=False)["input_ids"]) == "[3] > [1]"
    assert loaded.eos_token == tokenizer.eos_token


def test_lessons_are_in_the_tokens_of_the_prompts(tokenizer, writer):
    from dro_rl.data.facts.lessons import Lessons

    lessons = Lessons(tokenizer, seed=0)
    for row, field in ((lessons.select(8, turns=1), "Selection:"), (lessons.answer(2), "Answer:")):
        prompt, completion = tokenizer.decode(row.ids).split(f" {field} ", maxsplit=1)
        prompt = prompt.removeprefix(tokenizer.bos_token) + " " + field
        completion = completion.split(tokenizer.eos_token)[0].strip()
        expected = (*tokenizer(prompt)["input_ids"], *writer.completion(completion))
        read = len(expected) - len(writer.completion(completion))
        assert tuple(row.ids[: len(expected)]) == expected
        assert row.labels[read : len(expected)] == row.ids[read : len(expected)]
        assert set(row.labels[:read]) == {IGNORED}


def test_an_echo_states_a_fact_again_in_other_words():
    """Both copies are gold, have different titles and the same claim; without echoes no fact is
    stated twice, and the world is what it was."""
    seen = 0
    for example in make_examples(100, seed=3, echoes=0.5):
        claims: dict[str, list[str]] = {}
        for document in example.candidates:
            if "rumour" not in document.title:
                person = document.title.split()[0]
                claims.setdefault(f"{person}: {document.text.split(',')[0]}", []).append(
                    document.title
                )
        assert all(len(set(titles)) == len(titles) <= 2 for titles in claims.values())
        seen += sum(len(titles) == 2 for titles in claims.values())
        gold = [d for d in example.candidates if d.is_gold]
        assert len(gold) >= len(example.parts)
        assert all(any(part in d.text for part in example.parts) for d in gold)
    assert seen > 100
    assert make_examples(20, seed=3) == make_examples(20, seed=3, echoes=0.0)


def digest(things):
    return hashlib.sha256(repr(things).encode()).hexdigest()[:16]


def said(examples):
    return [(e.id, e.question, e.answers, e.candidates, e.parts) for e in examples]


def test_one_word_values_leave_examples_and_lessons_as_the_built_in_models_saw_them(tokenizer):
    from dro_rl.data.facts.lessons import Lessons

    plain = make_examples(50, seed=0)
    crowded = make_examples(50, seed=3, documents=20, echoes=0.5, split="evaluation")
    assert digest(said(plain)) == "b8137c64f7e91494"
    assert digest(said(crowded)) == "434c5267957c8645"
    lessons = Lessons(tokenizer, seed=0)
    makers = (lessons.repeat, lambda: lessons.look_up(4), lambda: lessons.select(8))
    rows = [make() for _ in range(10) for make in (*makers, lambda: lessons.answer(5))]
    assert digest([(row.ids, row.labels, row.kinds) for row in rows]) == "d4a08a8784a1b8eb"


@pytest.mark.parametrize("words", [2, 3, 4])
def test_a_longer_value_has_as_many_different_words_of_its_relation(words):
    for example in make_examples(100, seed=1, echoes=0.3, value_words=words):
        for document in example.candidates:
            stated = value(document).split()
            assert len(set(stated)) == len(stated) == words
            assert set(stated) <= set(key(document)[1].values)
        assert len(example.answers[0].split()) == len(example.parts) * (words + 1) - 1
        gold = {value(d) for d in example.candidates if d.is_gold}
        assert gold == set(example.parts)


def test_a_recipe_decides_the_words_of_a_value():
    data = FactsData(kind="facts", train_questions=5, evaluation_questions=3, value_words=3)
    split = load_examples(data, seed=0)
    parts = [part for e in (*split.train, *split.evaluation) for part in e.parts]
    assert {len(part.split()) for part in parts} == {3}


def test_a_rumour_with_a_longer_value_is_wrong_in_every_place():
    seen = 0
    for example in make_examples(200, seed=1, value_words=3):
        truth = {key(d): value(d).split() for d in example.candidates if not is_rumour(d)}
        for document in filter(is_rumour, example.candidates):
            pairs = zip(value(document).split(), truth[key(document)], strict=True)
            assert all(told != true for told, true in pairs)
            seen += 1
    assert seen > 200


def test_lessons_teach_values_of_the_width_of_the_examples(tokenizer):
    """What the lessons mark as values are whole values, in the answers as in the look-ups."""
    from dro_rl.data.facts.lessons import Lessons

    lessons = Lessons(tokenizer, seed=0, value_words=3)
    words = {word: relation for relation in world.RELATIONS for word in relation.values}
    for row in [lessons.answer(6) for _ in range(20)] + [lessons.look_up(4) for _ in range(20)]:
        marked = "".join(
            k if t != IGNORED else " " for k, t in zip(row.kinds, row.labels, strict=True)
        )
        runs = [match.span() for match in re.finditer("v+", marked)]
        assert runs
        for start, end in runs:
            value = tokenizer.convert_ids_to_tokens(row.ids[start:end])
            assert len(value) == 3
            assert len({words[word].phrase for word in value}) == 1
            assert row.labels[start:end] == row.ids[start:end]
