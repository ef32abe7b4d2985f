"""Models and tokenizers from nothing."""

import pytest
import torch

from dro_rl.policy import causal_lm
from dro_rl.policy.causal_lm import load_model, load_tokenizer
from dro_rl.policy.scratch import make_scratch, train_tokenizer
from dro_rl.prompts import PromptWriter
from dro_rl.records import Document
from dro_rl.sections.policy import PolicySection, Scratch

pytestmark = pytest.mark.unit


SECTION = PolicySection(model="model", dtype="float32", max_length=128, prompt="plain")
IDS = torch.tensor([[1, 40, 7, 120, 33, 5]])
TEXTS = ["Lake Orsa lies in the north of Tarn.", "Question: Who keeps it?\nSelection: [12] > [3]"]


def test_a_model_from_nothing_loads_and_reads_prompts(tmp_path):
    scratch = Scratch(hidden_size=32, heads=1, layers=1, intermediate_size=64, vocabulary=300)
    make_scratch(scratch, TEXTS, 128, 0, tmp_path / "a")
    make_scratch(scratch, TEXTS, 128, 0, tmp_path / "b")
    make_scratch(scratch, TEXTS, 128, 1, tmp_path / "c")
    a, b, c = (load_model(SECTION, str(tmp_path / x), training=False) for x in "abc")
    assert torch.equal(a(IDS).logits, b(IDS).logits)
    assert not torch.equal(a(IDS).logits, c(IDS).logits)
    tokenizer = load_tokenizer(str(tmp_path / "a"))
    assert len(tokenizer) == a.get_input_embeddings().num_embeddings
    assert (a.config.eos_token_id, a.config.pad_token_id) == (
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
    )
    writer = causal_lm.prompt_writer(SECTION, str(tmp_path / "a"))
    prompt = writer.select("Who keeps it?", [Document("Orsa", "In Tarn.")], 1).token_ids
    assert prompt[0] == tokenizer.bos_token_id and prompt.count(tokenizer.bos_token_id) == 1


def test_identifiers_are_written_digit_by_digit():
    tokenizer = train_tokenizer(TEXTS * 50, 400)
    ids = tokenizer("[12] > [3]", add_special_tokens=False)["input_ids"]
    pieces = tokenizer.convert_ids_to_tokens(ids)
    assert all(len(p) == 1 for p in pieces if any(x.isdigit() for x in p))
    assert [p for p in pieces if p.isdigit()] == ["1", "2", "3"]


@pytest.mark.parametrize("text", ["[12] > [3]", "Zoë naïve 東京 🗼\n tab\t", "1911 [1][2]"])
def test_a_trained_tokenizer_loses_nothing(text):
    tokenizer = train_tokenizer(TEXTS, 300)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
    writer = PromptWriter(tokenizer, "plain", 100)
    assert writer.decode(writer.completion(text)) == text.strip()
