"""Tiny models and tokenizers that tests make for themselves; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
SPECIAL = ["<pad>", "<s>", "</s>"]
CORPUS = [
    "Lake Orsa [1]: Lake Orsa lies in the north of Tarn. Its keeper is Mila Brandt.",
    "Mount Keld [2]: The summit of Mount Keld was first reached by Ivo Salter in 1911.",
    "Question: Who keeps Lake Orsa?\nSelection: [3] > [1] > [2]\nAnswer: Mila Brandt",
    "Below are passages, each with an identifier in square brackets, the most useful first.",
]


def make_tokenizer(
    corpus: list[str] | None = None, *, vocabulary: int = 400, chat: bool = False
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on `corpus`, which reads any text.

    Digits are single tokens: "[12]" is "[" "1" "2" "]", of which "[1" is a prefix.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus or CORPUS, trainer)
    return _wrap(tokenizer, chat)


def make_word_tokenizer(
    words: list[str], *, identifiers: int = 20, chat: bool = False
) -> PreTrainedTokenizerFast:
    """A word-level tokenizer in which each identifier "[i]" is one token. Unknown words are pad."""
    text = ["Question", "Selection", "Answer", ":", ">", ".", "?", ",", "|", "user", "assistant"]
    marks = [f"[{i}]" for i in range(1, identifiers + 1)]
    vocabulary = {w: i for i, w in enumerate(dict.fromkeys([*SPECIAL, *text, *marks, *words]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Split(pattern=Regex(r"\[\d+\]|[^\w\s]"), behavior="isolated"),
        ]
    )
    return _wrap(tokenizer, chat)


def make_llama(
    folder: Path,
    *,
    tokenizer: PreTrainedTokenizerFast | None = None,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 2,
    context: int = 512,
    seed: int = 0,
    scale: float = 3.0,
    tied: bool = False,
) -> LlamaForCausalLM:
    """A random float32 Llama, saved to `folder` with its tokenizer, and returned in eval mode.

    Args:
        scale: standard deviation of the logits: 3 makes peaked next-token distributions.
        tied: input and output embeddings are one matrix.
    """
    tokenizer = tokenizer or make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=context,
        tie_word_embeddings=tied,
        pad_token_id=SPECIAL.index("<pad>"),
        bos_token_id=SPECIAL.index("<s>"),
        eos_token_id=SPECIAL.index("</s>"),
        initializer_range=0.2,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config).eval().float()
    with torch.no_grad():
        model.lm_head.weight.normal_(std=scale / hidden**0.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def _wrap(tokenizer: Tokenizer, chat: bool) -> PreTrainedTokenizerFast:
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    if chat:
        wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


@torch.no_grad()
def token_logps(
    model: LlamaForCausalLM,
    prompt: Sequence[int],
    completion: Sequence[int],
    allowed: Sequence[Sequence[int]] | None = None,
) -> list[float]:
    """log p of each completion token [nats] by a plain forward, among `allowed` if given."""
    logits = model(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1].float()
    if allowed is not None:
        keep = torch.zeros_like(logits, dtype=torch.bool)
        for row, tokens in enumerate(allowed):
            keep[row, list(tokens)] = True
        logits = logits.masked_fill(~keep, float("-inf"))
    return logits.log_softmax(-1)[range(len(completion)), list(completion)].tolist()
