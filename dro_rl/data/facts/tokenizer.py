"""A word-level tokenizer for the built-in world, in Hugging Face format.

A word, the mark ">", an identifier ("[12]") and a prompt's field name with its colon
("Selection:") are one token each. White space, line breaks, colons, commas and full stops are
none: they separate what a policy has to connect, and prompts are a third shorter without them.
"""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from dro_rl.data.facts import world

PAD, BOS, EOS, UNKNOWN = "<pad>", "<s>", "</s>", "<unk>"
PAD_ID, BOS_ID, EOS_ID, UNKNOWN_ID = range(4)
FIELDS = ("Question:", "Selection:", "Answer:")
IDENTIFIERS = tuple(f"[{i}]" for i in range(1, 21))
MAX_LENGTH = 1024  # tokens

_TOKEN = rf"\[\d+\]|(?:{'|'.join(FIELDS)})|\w+|[^\w\s:,.]"


def vocabulary() -> list[str]:
    """Every token in the order of its id, special tokens first."""
    words = [*world.PEOPLE]
    for relation in world.RELATIONS:
        words += [*relation.words, *relation.phrase.split(), *relation.values]
    words += " ".join((*world.SOURCES, world.HEARSAY, world.RUMOUR, "Name the and")).split()
    marks = (">", *FIELDS, *IDENTIFIERS)
    return list(dict.fromkeys((PAD, BOS, EOS, UNKNOWN, *marks, *words)))


def make_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of the built-in world; it begins a text with the beginning-of-sequence token.

    `decode` joins tokens by single spaces: "[3] > [1]", "Lyon and pilot".
    """
    ids = {token: i for i, token in enumerate(vocabulary())}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_TOKEN), behavior="removed", invert=True)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, BOS_ID)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_LENGTH,
    )
