"""A small Llama from random weights, with a byte-level BPE tokenizer trained on a corpus.

For machines that reach no model hub, and for tests: it shows that everything works on real text,
not that a model of this size reads it well.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from dro_rl.sections.policy import Scratch

_SPECIAL = ("<pad>", "<bos>", "<eos>")


def make_scratch(
    scratch: Scratch, texts: Iterable[str], max_length: int, seed: int, folder: Path
) -> None:
    """Write a random model and its tokenizer to `folder`, in Hugging Face format.

    Args:
        scratch: sizes.
        texts: what the tokenizer learns its merges from.
        max_length: context [tokens].
        seed: of the weights.
        folder: made if it is not there.
    """
    tokenizer = train_tokenizer(texts, scratch.vocabulary)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=scratch.hidden_size,
        intermediate_size=scratch.intermediate_size,
        num_hidden_layers=scratch.layers,
        num_attention_heads=scratch.heads,
        num_key_value_heads=scratch.heads,
        max_position_embeddings=max_length,
        tie_word_embeddings=True,
        pad_token_id=_SPECIAL.index("<pad>"),
        bos_token_id=_SPECIAL.index("<bos>"),
        eos_token_id=_SPECIAL.index("<eos>"),
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that writes a beginning-of-sequence token first."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        # Digits one by one: identifiers such as [12] must not merge with what stands around them.
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", bpe.token_to_id("<bos>"))]
    )
    pad, bos, eos = _SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=pad, bos_token=bos, eos_token=eos
    )
