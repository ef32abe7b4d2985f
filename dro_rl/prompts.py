"""The two prompts, and identifiers: how they are written and read.

One function makes a prompt for sampling and for training, so the two agree token for token.
Chat models get their chat template; plain models get plain text, in which a document's
identifier follows its title ("Title [3]: text"): a small model learns to copy what follows the
words it looks up long before it learns to look behind them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from dro_rl.errors import UserError
from dro_rl.records import Document

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PromptStyle = Literal["plain", "chat"]

_IDENTIFIER = re.compile(r"\[\s*(\d{1,9})\s*\]")
_WELL_FORMED = re.compile(r"\s*\[\s*\d{1,9}\s*\](\s*>\s*\[\s*\d{1,9}\s*\])*\s*")

SELECT = (
    "Below are {n} passages, each with an identifier in square brackets. Select the passages that "
    "help to answer the question, at most {k}, the most useful first. Answer with identifiers "
    "alone, in the form [a] > [b] > ...\n\n{documents}\n\nQuestion: {question}"
)
ANSWER = (
    "Answer the question from the passages below. Give the answer alone, in as few words as "
    "possible.\n\n{documents}\n\nQuestion: {question}"
)
PLAIN = {
    "select": "{documents}\nQuestion: {question}\nSelection:",
    "answer": "{documents}\nQuestion: {question}\nAnswer:",
}


def write_selection(documents: Sequence[int]) -> str:
    """0-based document indices to the text "[3] > [1]"."""
    return " > ".join(f"[{i + 1}]" for i in documents)


def read_selection(text: str, n: int, k: int) -> tuple[tuple[int, ...], bool]:
    """The documents that a selector's text names, and whether the text is malformed.

    Identifiers count in order; unknown and repeated ones are dropped, and what follows the k-th
    is not read: the selection is the text, the documents are a deterministic function of it.

    Args:
        text: what the selector wrote.
        n: number of candidates; identifiers 1..n are known.
        k: most documents a selection may hold.
    Returns:
        0-based indices in the order named, and True unless the text is exactly 1 to k distinct
        known identifiers joined by ">".
    """
    named = [int(x) - 1 for x in _IDENTIFIER.findall(text)]
    known = tuple(dict.fromkeys(i for i in named if 0 <= i < n))[:k]
    return known, not (_WELL_FORMED.fullmatch(text) and len(known) == len(named))


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt's token ids, and how many documents were cut to make it fit the context."""

    token_ids: tuple[int, ...]
    truncated_documents: int = 0


@dataclass(frozen=True)
class PromptWriter:
    """Writes both prompts for one tokenizer.

    Args:
        tokenizer: a fast Hugging Face tokenizer.
        style: "chat" (the tokenizer's chat template, generation prompt included) or "plain".
        max_tokens: longest prompt [tokens]: the context less the longest completion.
    """

    tokenizer: PreTrainedTokenizerBase
    style: PromptStyle
    max_tokens: int

    def select(self, question: str, documents: Sequence[Document], k: int) -> Prompt:
        """The selector's prompt: all candidates, then the question.

        Raises:
            UserError: the question alone does not fit the context.
        """
        return self._fit("select", question, documents, k)

    def answer(self, question: str, documents: Sequence[Document]) -> Prompt:
        """The generator's prompt: the selected documents in order, renumbered from 1.

        Raises:
            UserError: the question alone does not fit the context.
        """
        return self._fit("answer", question, documents, len(documents))

    def completion(self, text: str) -> tuple[int, ...]:
        """Token ids of what a policy should write after a prompt, end-of-sequence included."""
        text = self._plain_words(text)
        text = text if self.style == "chat" else " " + text
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return (*ids, self._end)

    def decode(self, token_ids: Sequence[int]) -> str:
        """A completion's text, without special tokens."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True)).strip()

    @property
    def _end(self) -> int:
        end = self.tokenizer.eos_token_id
        assert isinstance(end, int)
        return end

    @cached_property
    def _special(self) -> re.Pattern[str]:
        added = self.tokenizer.added_tokens_decoder.values()
        special = {*self.tokenizer.all_special_tokens, *(t.content for t in added if t.special)}
        longest_first = sorted(special, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)))

    def _plain_words(self, text: str) -> str:
        """Text without the tokenizer's special tokens: a document that contains "</s>" or
        "<|im_end|>" must not end the prompt or speak as somebody else."""
        return self._special.sub(" ", text)

    def _fit(self, task: str, question: str, documents: Sequence[Document], k: int) -> Prompt:
        question = self._plain_words(question)
        documents = [
            Document(self._plain_words(d.title), self._plain_words(d.text)) for d in documents
        ]
        ids = self._encode(task, question, [self._render(i, d) for i, d in enumerate(documents)], k)
        if len(ids) <= self.max_tokens:
            return Prompt(tuple(ids))
        heads = [self._render(i, Document(d.title, "")) for i, d in enumerate(documents)]
        room = self.max_tokens - len(self._encode(task, question, heads, k))
        while room >= 0:
            shares = _fair_shares([self._count(d.text) for d in documents], room)
            cut = [
                Document(d.title, self._cut(d.text, s))
                for d, s in zip(documents, shares, strict=True)
            ]
            rows = [self._render(i, d) for i, d in enumerate(cut)]
            ids = self._encode(task, question, rows, k)
            if len(ids) <= self.max_tokens:
                shortened = sum(a.text != b.text for a, b in zip(cut, documents, strict=True))
                return Prompt(tuple(ids), shortened)
            if not room:
                break
            # Tokens merge differently once joined.
            room = max(0, room - (len(ids) - self.max_tokens))
        raise UserError(
            f"question {question[:80]!r} with {len(documents)} documents needs more than the "
            f"{self.max_tokens} tokens that the context leaves for a prompt, even with every "
            "document cut to its title: raise max_length or lower retrieval.candidates"
        )

    def _encode(self, task: str, question: str, rows: list[str], k: int) -> list[int]:
        fields = {"documents": "\n".join(rows), "question": question, "n": len(rows), "k": k}
        if self.style == "plain":
            return self.tokenizer(PLAIN[task].format(**fields))["input_ids"]
        text = (SELECT if task == "select" else ANSWER).format(**fields)
        prompt = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
        )
        return self.tokenizer(str(prompt), add_special_tokens=False)["input_ids"]

    def _render(self, index: int, document: Document) -> str:
        title, text, mark = document.title.strip(), document.text.strip(), f"[{index + 1}]"
        if self.style == "plain":
            return f"{title} {mark}: {text}".strip()
        return f"{mark} {title}: {text}" if title else f"{mark} {text}"

    def _count(self, text: str) -> int:
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _cut(self, text: str, tokens: int) -> str:
        ends = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        offsets = ends["offset_mapping"]
        return text if len(offsets) <= tokens else text[: offsets[tokens - 1][1] if tokens else 0]


def prompt_style(tokenizer: PreTrainedTokenizerBase, wanted: str) -> PromptStyle:
    """ "auto" means the chat template where the tokenizer has one."""
    if wanted == "auto":
        return "chat" if tokenizer.chat_template else "plain"
    if wanted == "chat" and not tokenizer.chat_template:
        raise UserError(
            f"prompt: chat needs a tokenizer with a chat template, and {tokenizer.name_or_path} "
            "has none: use prompt: plain"
        )
    return "chat" if wanted == "chat" else "plain"


def _fair_shares(lengths: Sequence[int], room: int) -> list[int]:
    """Divide `room` tokens among documents: what short ones leave over goes to the long ones."""
    shares, left = [0] * len(lengths), room
    for position, i in enumerate(sorted(range(len(lengths)), key=lengths.__getitem__)):
        shares[i] = min(lengths[i], left // (len(lengths) - position))
        left -= shares[i]
    return shares
