"""The grammar of selections: what may come next, for tokenizers of several kinds."""

import random

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dro_rl.errors import UserError
from dro_rl.policy.distinct import SelectionGrammar
from dro_rl.prompts import PromptWriter, read_selection, write_selection
from tests.models import make_tokenizer, make_word_tokenizer

pytestmark = pytest.mark.unit

TOKENIZERS = {"pieces": make_tokenizer(), "words": make_word_tokenizer(["Lake"])}


def writer(kind: str, style: str = "plain") -> PromptWriter:
    return PromptWriter(TOKENIZERS[kind], style, max_tokens=100)  # type: ignore[arg-type]


@pytest.mark.parametrize("style", ["plain", "chat"])
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_every_valid_selection_is_allowed_token_by_token(kind, style):
    w = writer(kind, style)
    grammar = SelectionGrammar(w, n=20, k=5)
    draw = random.Random(0)
    for _ in range(100):
        documents = draw.sample(range(20), draw.randint(1, 5))
        completion = w.completion(write_selection(documents))
        table = grammar.allowed_table(completion)
        assert len(table) == len(completion)
        assert all(token in row for token, row in zip(completion, table, strict=True))


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_whatever_is_allowed_makes_a_valid_selection(kind):
    w = writer(kind)
    grammar = SelectionGrammar(w, n=12, k=4)
    draw = random.Random(1)
    seen = set()
    for _ in range(300):
        tokens: list[int] = []
        while not tokens or tokens[-1] != grammar.eos:
            tokens.append(draw.choice(grammar.allowed(tokens)))
        text = w.decode(tokens)
        documents, malformed = read_selection(text, n=12, k=4)
        assert not malformed and 1 <= len(documents) <= 4
        assert tuple(tokens) == w.completion(text)
        seen.add(len(documents))
    assert seen == {1, 2, 3, 4}


def test_all_selections_of_a_small_grammar_are_reachable_once():
    w = writer("pieces")
    grammar = SelectionGrammar(w, n=3, k=2)

    def complete(prefix):
        if prefix and prefix[-1] == grammar.eos:
            return [w.decode(prefix)]
        return [text for t in grammar.allowed(prefix) for text in complete([*prefix, t])]

    pairs = [f"[{a}] > [{b}]" for a in (1, 2, 3) for b in (1, 2, 3) if a != b]
    assert sorted(complete([])) == sorted(["[1]", "[2]", "[3]", *pairs])


def test_an_identifier_that_begins_another_is_told_apart():
    w = writer("pieces")
    grammar = SelectionGrammar(w, n=12, k=3)
    one = w.completion("[1]")[:-2]  # without the bracket and the end
    vocabulary = w.tokenizer.get_vocab()
    close, zero, two = vocabulary["]"], vocabulary["0"], vocabulary["2"]
    assert {close, zero, two} <= set(grammar.allowed(one))
    after_1 = [*w.completion("[1]")[:-1], *w.completion("[12] > [1]")[4:-2]]
    assert close not in grammar.allowed(after_1) and zero in grammar.allowed(after_1)


def test_only_the_end_follows_k_identifiers():
    w = writer("words")
    grammar = SelectionGrammar(w, n=5, k=2)
    assert grammar.allowed(w.completion("[3] > [1]")[:-1]) == [grammar.eos]


def test_k_beyond_the_candidates_and_a_single_candidate():
    w = writer("words")
    assert SelectionGrammar(w, n=2, k=5).k == 2
    only = SelectionGrammar(w, n=1, k=5)
    assert only.allowed_table(w.completion("[1]")) == [[w.completion("[1]")[0]], [only.eos]]


def test_allowed_tokens_are_sorted():
    grammar = SelectionGrammar(writer("words"), n=20, k=5)
    assert grammar.allowed([]) == sorted(grammar.allowed([])) and len(grammar.allowed([])) == 20


@pytest.mark.parametrize("text", ["[1] > [1]", "[6]", "[1] >", "Lake"])
def test_a_completion_from_outside_the_grammar_is_refused(text):
    w = writer("words")
    with pytest.raises(ValueError, match="no selection"):
        SelectionGrammar(w, n=5, k=3).allowed_table(w.completion(text))


def test_a_completion_that_the_length_limit_cut_has_a_table():
    w = writer("pieces")
    cut = w.completion("[3] > [1]")[:4]
    assert len(SelectionGrammar(w, n=5, k=3).allowed_table(cut)) == 4


def test_a_tokenizer_that_merges_across_identifiers_is_refused():
    text = "[1] > [2]"
    vocabulary = {t: i for i, t in enumerate(["<pad>", "</s>", *dict.fromkeys(text), "] > ["])}
    merges = [("]", " "), ("] ", ">"), ("] >", " "), ("] > ", "[")]
    for a, b in merges:
        vocabulary.setdefault(a + b, len(vocabulary))
    inner = Tokenizer(models.BPE(vocabulary, merges, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.Split("\n", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>")
    tokenizer.name_or_path = "merging"
    with pytest.raises(UserError, match="merging"):
        SelectionGrammar(PromptWriter(tokenizer, "chat", 100), n=2, k=2)


def test_a_tokenizer_that_does_not_know_its_identifiers_is_refused():
    tokenizer = make_word_tokenizer(["Lake"], identifiers=3)
    with pytest.raises(UserError, match="distinct"):
        SelectionGrammar(PromptWriter(tokenizer, "plain", 100), n=5, k=2)


# --- less some documents ------------------------------------------------------------------------


def completions(grammar: SelectionGrammar, prefix: tuple[int, ...] = ()) -> list[tuple[int, ...]]:
    """Everything that the grammar lets be written."""
    if prefix and prefix[-1] == grammar.eos:
        return [prefix]
    return [c for t in grammar.allowed(prefix) for c in completions(grammar, (*prefix, t))]


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("k", [1, 2])
def test_without_documents_the_selections_of_the_others_are_left(kind, k):
    """[1] and [10] of 12 share tokens in "pieces": each goes without the other."""
    w = writer(kind)
    grammar = SelectionGrammar(w, n=12, k=k)
    for gone in ((0,), (9,), (0, 9, 10), (3, 1), tuple(range(11))):
        rest = [i for i in range(12) if i not in gone]
        wanted = [(i,) for i in rest]
        if k == 2:
            wanted += [(i, j) for i in rest for j in rest if i != j]
        found = completions(grammar.without(gone))
        assert sorted(found) == sorted(w.completion(write_selection(d)) for d in wanted)


def test_leaving_documents_out_changes_no_other_grammar():
    w = writer("words")
    grammar = SelectionGrammar(w, n=5, k=2)
    before = completions(grammar)
    less = grammar.without((1, 2))
    assert less.excluded == (1, 2) and grammar.excluded == ()
    assert completions(grammar) == before
    assert completions(grammar.without((0,))) != completions(less)
    assert completions(grammar.without(())) == before


def test_k_is_at_most_what_is_left():
    """Then only the end may follow, where " > " would lead nowhere."""
    w = writer("pieces")
    grammar = SelectionGrammar(w, n=4, k=3).without((0, 3))
    assert grammar.k == 2
    assert grammar.allowed(w.completion("[2] > [3]")[:-1]) == [grammar.eos]


def test_a_document_that_is_left_out_is_refused():
    w = writer("words")
    with pytest.raises(ValueError, match="no selection"):
        SelectionGrammar(w, n=5, k=2).without((1,)).allowed_table(w.completion("[2]"))
