"""`selector.train: last_layers`: what the frozen layers make of a text, computed once.

The hidden states that enter the first learned layer are kept in memory, and a pass begins there.
Shapes: B texts, T their tokens, d components.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from dro_rl.policy.frozen import digest
from dro_rl.policy.room import room_for_hidden_states

Features = dict[str, Any]
Encode = Callable[[Features], Tensor]

_TOLERANCE = 1e-4


@dataclass
class Kept:
    """Hidden states by text, (T, d) each, up to `room` bytes. Those of a full store stay: of texts
    that are read in turns, dropping the oldest would leave none."""

    room: float
    texts: dict[Hashable, Tensor] = field(default_factory=dict)

    def add(self, text: Hashable, hidden: Tensor) -> None:
        if self.room >= hidden.nbytes:
            self.room -= hidden.nbytes
            self.texts[text] = hidden


class Lower:
    """The frozen layers of an encoder, whose forward passes it takes over.

    Args:
        plain: the model of sentence-transformers, on the CPU.
        layers: those of its transformer.
        learned: how many of them learn, the last ones.
        dtype: in which passes run; other hidden states come of it.
    """

    def __init__(self, plain: Any, layers: nn.ModuleList, learned: int, dtype: str) -> None:
        frozen = {n: p for n, p in plain.named_parameters() if not p.requires_grad}
        self.kept = _kept(digest(list(plain), frozen, plain), dtype)
        self._works: bool | None = None  # a pass that begins above gives the same; None: not tried
        self._stops, self._entering = False, None
        first = len(layers) - learned
        for layer in layers[:first]:
            layer.forward = partial(self._forward, layer.forward)
        layers[first].register_forward_pre_hook(self._before_learned, with_kwargs=True)

    def run(self, texts: Sequence[Hashable], features: Features, encode: Encode) -> Tensor:
        """What `encode(features)` gives, (B, ...), with its graph.

        Args:
            texts: stand for the rows of the features.
            features: `attention_mask` and other tensors of (B, T), and what else `encode` reads.
        """
        if self._works is None:
            self._works = self._tried(features, encode)
        if not self._works:
            return encode(features)
        rows = [self._kept_or_new(text, i, features, encode) for i, text in enumerate(texts)]
        return self._from(rows, features, encode)

    def _kept_or_new(self, text: Hashable, i: int, features: Features, encode: Encode) -> Tensor:
        if text in self.kept.texts:
            return self.kept.texts[text]
        row = self._row(i, features, encode)
        self.kept.add(text, row)
        return row

    def _row(self, i: int, features: Features, encode: Encode) -> Tensor:
        """(T, d), of a text alone: what it is beside would show in the last bit."""
        mask = features["attention_mask"]
        own = mask[i].bool()
        alone = {
            name: value[i : i + 1, own] if _is_like(value, mask) else value
            for name, value in features.items()
        }
        self._stops = True
        try:
            with torch.no_grad():
                encode(alone)
        except _Reached as reached:
            return reached.hidden[0]
        finally:
            self._stops = False
        raise RuntimeError("a pass has not come to the first layer that learns")

    def _from(self, rows: Sequence[Tensor], features: Features, encode: Encode) -> Tensor:
        mask = features["attention_mask"].bool()
        entering = rows[0].new_zeros(*mask.shape, rows[0].shape[-1])
        entering[mask] = torch.cat(list(rows))
        self._entering = entering
        try:
            return encode(dict(features))  # modules add to what they are given
        finally:
            self._entering = None

    def _tried(self, features: Features, encode: Encode) -> bool:
        """Whether this way and the whole pass agree in float32, on a first batch."""
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            rows = [self._row(i, features, encode) for i in range(len(features["attention_mask"]))]
            try:
                found = self._from(rows, features, encode)
            except (RuntimeError, TypeError, ValueError, IndexError):  # its layers pass on more
                return False
            whole = encode(dict(features))
        return torch.allclose(found, whole, rtol=_TOLERANCE, atol=_TOLERANCE)

    def _forward(self, layer: Callable[..., Any], *args: Any, **more: Any) -> Any:
        return layer(*args, **more) if self._entering is None else self._entering

    def _before_learned(self, _: nn.Module, args: tuple[Any, ...], more: Mapping[str, Any]) -> None:
        if self._stops:
            raise _Reached(args[0] if args else more["hidden_states"])


class _Reached(Exception):
    """Ends a pass at the first learned layer, with what enters it."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


def _is_like(value: Any, mask: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == mask.shape


@cache
def _kept(frozen: str, dtype: str) -> Kept:
    """In one process engine, learner and further runs share them."""
    return Kept(room_for_hidden_states())
