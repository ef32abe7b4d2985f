"""Sentence encoders of sentence-transformers as selectors: a score for every candidate.

A *bi-encoder* embeds question and documents apart, and compares; a *cross-encoder* reads a question
with a document. Both are used through the library's own modules, so what is saved is a plain model
of sentence-transformers. Shapes: S states, N candidates, T texts, d components.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dro_rl.errors import UserError
from dro_rl.jsonlines import located
from dro_rl.policy.encoder_parts import (
    add_adapters,
    merged,
    train_last_layers,
    without_adapters,
)
from dro_rl.policy.frozen import Frozen
from dro_rl.policy.lower import Encode, Features, Lower
from dro_rl.policy.picks import State
from dro_rl.policy.texts import Lengths, Text, document_text, question_text
from dro_rl.policy.vectors import TaskText
from dro_rl.records import Example
from dro_rl.sections.encoder import EncoderSelector

_TOGETHER = 32  # texts of a forward pass, of like lengths: less padding


class Encoder(nn.Module, ABC):
    """Scores candidates, times `scale`. It never has dropout, which would make the learner's
    log-probabilities differ from the engine's.

    Args:
        section: the recipe's.
        plain: the model of sentence-transformers.
        name: its folder or hub name, for messages.
    """

    what: str

    def __init__(self, section: EncoderSelector, plain: Any, name: str) -> None:
        super().__init__()
        self.lower: Lower | None = None
        if section.lora:
            add_adapters(plain, section.lora, name)
        elif section.layers:
            layers = train_last_layers(plain, section.layers, name)
            if section.layers < len(layers) and plain.device.type == "cpu":
                self.lower = Lower(plain, layers, section.layers, section.dtype)
        self.section, self.name, self.plain = section, name, plain
        self.lengths = Lengths(plain.tokenizer)
        self.limit: int = plain.max_seq_length or plain.tokenizer.model_max_length

    def train(self, mode: bool = True) -> Encoder:
        return super().train(False)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @abstractmethod
    def scores(
        self, states: Sequence[State], known: dict[Hashable, Tensor] | None = None
    ) -> Tensor:
        """(S, N) float32 with the graph, N being the most candidates of a state, and -inf after
        another's last.

        Args:
            known: what earlier calls made of texts with the same weights, without a graph; what is
                in there is not computed again, and what is new is added.
        """

    @abstractmethod
    def texts(self, states: Sequence[State], known: Container[Hashable] = ()) -> list[Text]:
        """All different texts that scores are made of, without those of `known` (see `scores`)."""

    @abstractmethod
    def documents(self, example: Example) -> list[Text]:
        """The text with each candidate."""

    def cost(self, states: Sequence[State], known: Container[Hashable] = ()) -> int:
        """Tokens through the encoder for `scores`, padding left aside."""
        return sum(min(self.limit, n) for n in self.lengths.of(self.texts(states, known)))

    def cut(self, example: Example) -> int:
        """How many candidates have a text that is cut."""
        return sum(n > self.limit for n in self.lengths.of(self.documents(example)))

    def _run(self, texts: Sequence[Hashable], features: Features, encode: Encode) -> Tensor:
        """`encode` of the features of texts."""
        features, low = _on(self.device, features), self.section.dtype == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=low):
            return self.lower.run(texts, features, encode) if self.lower else encode(features)

    def learned(self) -> Iterator[tuple[str, Tensor]]:
        """The weights that learn, by name."""
        return ((n, p.detach()) for n, p in self.named_parameters() if p.requires_grad)

    def load_learned(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace them.

        Raises:
            RuntimeError: names or shapes are not this encoder's.
        """
        _, unknown = self.load_state_dict(tensors, strict=False)
        missing = {name for name, _ in self.learned()} - tensors.keys()
        if missing or unknown:
            raise RuntimeError(f"weights lack {sorted(missing)[:3]}, and bring {unknown[:3]}")

    def disable_adapter(self) -> AbstractContextManager[None]:
        """As peft's: the encoder without what its adapters have learned, in a block."""
        return without_adapters(self.plain)

    def save(self, folder: Path) -> None:
        """A plain model of sentence-transformers, adapters folded in."""
        backend = getattr(self.plain.tokenizer, "backend_tokenizer", None)
        if backend is not None:  # it would be saved with the lengths of the last call
            backend.no_truncation()
            backend.no_padding()
        plain = merged(self.plain) if self.section.lora else self.plain
        plain.save_pretrained(str(folder), create_model_card=False)


class BiEncoder(Encoder):
    """The similarity of the question's vector and each document's."""

    what = "bi-encoder"

    def __init__(self, section: EncoderSelector, plain: Any, name: str) -> None:
        super().__init__(section, plain, name)
        similarity = plain.similarity_fn_name
        if similarity not in ("cosine", "dot"):
            raise UserError(
                f"selector.model: {name} compares by {similarity} distance: take an encoder whose "
                "similarity is cosine or dot"
            )
        self.cosine = similarity == "cosine"
        self.scale = section.scale or (20.0 if self.cosine else 1.0)
        self.frozen = None
        if section.train == "head":
            self.frozen = Frozen(plain, self._encoded, located(section.cache_dir).absolute())

    def scores(
        self, states: Sequence[State], known: dict[Hashable, Tensor] | None = None
    ) -> Tensor:
        texts = self._by_task(states)
        vectors = _with_known(texts, self._vectors, known)
        row = {text: i for i, text in enumerate(texts)}
        asked_S = torch.tensor([row["query", question_text(s)] for s in states])
        examples = dict.fromkeys(s.example for s in states)
        shown = {e: [row["document", document_text(d)] for d in e.candidates] for e in examples}
        shown_S_N, beyond = _padded([shown[s.example] for s in states])
        found = (vectors[shown_S_N] @ vectors[asked_S][..., None])[..., 0]
        return (self.scale * found).masked_fill(beyond.to(found.device), -torch.inf)

    def texts(self, states: Sequence[State], known: Container[Hashable] = ()) -> list[Text]:
        return [text for task, text in self._by_task(states) if (task, text) not in known]

    def documents(self, example: Example) -> list[Text]:
        return [document_text(d) for d in example.candidates]

    def cost(self, states: Sequence[State], known: Container[Hashable] = ()) -> int:
        return len(self.texts(states, known)) if self.frozen else super().cost(states, known)

    def _by_task(self, states: Sequence[State]) -> list[TaskText]:
        asked = (("query", question_text(s)) for s in states)
        examples = dict.fromkeys(s.example for s in states)
        shown = (("document", document_text(d)) for e in examples for d in e.candidates)
        return list(dict.fromkeys((*asked, *shown)))

    def _vectors(self, texts: Sequence[TaskText]) -> Tensor:
        vectors = self.frozen(texts) if self.frozen else self._encoded(texts, self.plain)
        return nn.functional.normalize(vectors, dim=-1) if self.cosine else vectors

    def _encoded(self, texts: Sequence[TaskText], modules: Any) -> Tensor:
        """What `modules` make of texts: (T, d)."""
        parts, done = [], list[int]()
        for task in ("query", "document"):
            mine = [i for i, (wanted, _) in enumerate(texts) if wanted == task]
            mine.sort(key=lambda i: len(texts[i][1]))
            for start in range(0, len(mine), _TOGETHER):
                some = mine[start : start + _TOGETHER]
                parts.append(self._pass([texts[i][1] for i in some], task, modules))
                done += some
        return torch.cat(parts)[torch.argsort(torch.tensor(done))]

    def _pass(self, texts: list[str], task: str, modules: Any) -> Tensor:
        features = self.plain.preprocess(texts, prompt=self._prompt(task), task=task)
        return self._run(
            [(task, text) for text in texts],
            features,
            lambda features: modules(features, task=task)["sentence_embedding"].float(),
        )

    def _prompt(self, task: str) -> str | None:
        """What the library's `encode_query` and `encode_document` put before a text."""
        names = ("query",) if task == "query" else ("document", "passage", "corpus")
        known = self.plain.prompts
        return next(
            (known[n] for n in names if n in known), known.get(self.plain.default_prompt_name)
        )


class PairEncoder(Encoder):
    """The score that a cross-encoder gives a question with a document, before its activation."""

    what = "cross-encoder"

    def __init__(self, section: EncoderSelector, plain: Any, name: str) -> None:
        super().__init__(section, plain, name)
        if plain.num_labels != 1:
            raise UserError(
                f"selector.model: {name} gives {plain.num_labels} numbers a pair, not one score: "
                "take a cross-encoder that ranks (num_labels: 1)"
            )
        self.scale = section.scale or 1.0

    def scores(
        self, states: Sequence[State], known: dict[Hashable, Tensor] | None = None
    ) -> Tensor:
        pairs = sorted(self.texts(states), key=lambda p: len(p[0]) + len(p[1]))
        flat, row = _with_known(pairs, self._read, known), {p: i for i, p in enumerate(pairs)}
        shown_S_N, beyond = _padded([[row[p] for p in _pairs(s)] for s in states])
        return (self.scale * flat[shown_S_N]).masked_fill(beyond.to(flat.device), -torch.inf)

    def texts(self, states: Sequence[State], known: Container[Hashable] = ()) -> list[Text]:
        pairs = dict.fromkeys(pair for s in states for pair in _pairs(s))
        return [pair for pair in pairs if pair not in known]

    def documents(self, example: Example) -> list[Text]:
        return _pairs(State(example))

    def _read(self, pairs: Sequence[Text]) -> Tensor:
        parts = [self._pass(pairs[i : i + _TOGETHER]) for i in range(0, len(pairs), _TOGETHER)]
        return torch.cat(parts)

    def _pass(self, pairs: Sequence[Text]) -> Tensor:
        features = self.plain.preprocess(list(pairs))
        return self._run(
            pairs, features, lambda features: self.plain(features)["scores"].float().reshape(-1)
        )


def _with_known(
    texts: Sequence[Any],
    compute: Callable[[Sequence[Any]], Tensor],
    known: dict[Hashable, Tensor] | None,
) -> Tensor:
    """A row a text: (T, ...)."""
    if known is None:
        return compute(texts)
    new = [text for text in texts if text not in known]
    if new:
        known.update(zip(new, compute(new), strict=True))
    return torch.stack([known[text] for text in texts])


def _pairs(state: State) -> list[Text]:
    asked = question_text(state)
    return [(asked, document_text(d)) for d in state.example.candidates]


def _padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """(S, N) numbers, and where there are none."""
    longest = max(map(len, rows))
    numbers = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    return numbers, torch.arange(longest) >= lengths[:, None]


def _on(device: torch.device, features: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in features.items()}
