"""A trained pair at work: select documents for a question, and answer from them.

    pipeline = Pipeline("FOLDER")  # which has this file, pipeline.json, selector/ and generator/
    found = pipeline.answer("Who wrote ...?", [{"title": "...", "text": "..."}, ...])
    print(found.text, [document.title for document in found.documents])

Needs torch and transformers alone. Prompts, identifiers and decoding are those of training; to find
documents is the caller's: give the best of a retriever's, in any order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dro_rl.errors import UserError
from dro_rl.policy.distinct import SelectionGrammar
from dro_rl.prompts import PromptWriter, read_selection, write_selection
from dro_rl.records import Document


@dataclass(frozen=True)
class Answer:
    """What a pipeline found: the answer, what the selector wrote, and the documents that this names
    (`places` are theirs among those given, from 0), in the selector's order."""

    text: str
    selection: str
    documents: tuple[Document, ...]
    places: tuple[int, ...]


class Policy:
    """One of the two models, greedy.

    Args:
        folder: in Hugging Face format.
        settings: of pipeline.json: the style of prompts, the context and the longest completion.
        device: of torch.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], device: str) -> None:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        self.max_new_tokens: int = settings["max_new_tokens"]
        room = settings["max_length"] - self.max_new_tokens
        self.writer = PromptWriter(tokenizer, settings["prompt"], room)
        self.end: int = tokenizer.eos_token_id
        self.model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype="auto", trust_remote_code=False, use_safetensors=True
        )
        self.model.to(device)
        self.model.eval()

    @torch.inference_mode()
    def write(self, prompt: Sequence[int], grammar: SelectionGrammar | None = None) -> list[int]:
        """The likeliest token after another, until the end or the longest completion."""
        written: list[int] = []
        tokens, cache = list(prompt), None
        while len(written) < self.max_new_tokens:
            output = self.model(
                input_ids=torch.tensor([tokens], device=self.model.device),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            logits = output.logits[0, -1].float()
            if grammar is not None:
                logits = _only(logits, grammar.allowed(written))
            written.append(int(logits.argmax()))
            if written[-1] == self.end:
                break
            tokens, cache = written[-1:], output.past_key_values
        return written

    @torch.inference_mode()
    def rank(self, prompt: Sequence[int], n: int) -> list[int]:
        """The documents 0..n-1, the likeliest to be named first."""
        grammar, logps = SelectionGrammar(self.writer, n, 1), dict[int, float]()

        def walk(written: list[int], logp: float) -> None:
            allowed = grammar.allowed(written)
            if allowed == [self.end]:
                (document,), _ = read_selection(self.writer.decode(written), n, 1)
                logps[document] = logp
            elif len(allowed) == 1:
                walk([*written, *allowed], logp)
            else:
                tokens = torch.tensor([[*prompt, *written]], device=self.model.device)
                logits = self.model(input_ids=tokens, logits_to_keep=1).logits[0, -1].float()
                each = logits[allowed].log_softmax(-1).tolist()
                for token, more in zip(allowed, each, strict=True):
                    walk([*written, token], logp + more)

        walk([], 0.0)
        return sorted(logps, key=lambda document: -logps[document])


class Pipeline:
    """Selects and answers.

    Args:
        folder: what `dro-rl export` wrote.
        device: of torch; by default the GPU where there is one.
    """

    def __init__(self, folder: str | Path, device: str | None = None) -> None:
        folder = Path(folder)
        settings = json.loads((folder / "pipeline.json").read_text(encoding="utf-8"))
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.candidates: int = settings["candidates"]
        self.documents: int = settings["documents"]
        self.decoding: str = settings["decoding"]
        self.selector = Policy(folder / "selector", settings["selector"], device)
        self.generator = Policy(folder / "generator", settings["generator"], device)

    def answer(self, question: str, documents: Sequence[Document | Mapping[str, str]]) -> Answer:
        """The answer, and the documents that it was made from.

        Args:
            documents: to select from, each with `title` and `text`; no more than the selector was
                trained to read.
        Raises:
            UserError: there are none or too many, or the question does not fit the context.
        """
        given = [_document(document) for document in documents]
        if not 0 < len(given) <= self.candidates:
            raise UserError(
                f"{len(given)} documents to select from: give 1 to {self.candidates}, as many as "
                "the selector was trained to read: the best that a retriever finds"
            )
        text, places = self._select(question, given)
        chosen = tuple(given[i] for i in places)
        prompt = self.generator.writer.answer(question, chosen).token_ids
        answer = self.generator.writer.decode(self.generator.write(prompt))
        return Answer(answer, text, chosen, places)

    def _select(self, question: str, given: Sequence[Document]) -> tuple[str, tuple[int, ...]]:
        writer, n, k = self.selector.writer, len(given), self.documents
        prompt = writer.select(question, given, k).token_ids
        if self.decoding == "independent":
            places = tuple(self.selector.rank(prompt, n)[:k])
            return write_selection(places), places
        grammar = SelectionGrammar(writer, n, k) if self.decoding == "distinct" else None
        text = writer.decode(self.selector.write(prompt, grammar))
        return text, read_selection(text, n, k)[0]


def _document(given: Document | Mapping[str, str]) -> Document:
    if isinstance(given, Document):
        return given
    return Document(given.get("title", ""), given["text"])


def _only(logits: torch.Tensor, allowed: Sequence[int]) -> torch.Tensor:
    masked = torch.full_like(logits, float("-inf"))
    masked[allowed] = logits[allowed]
    return masked
