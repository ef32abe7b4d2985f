"""A causal LM's forward pass over completions, by either way (`dro_rl.policy.likelihood` chooses).
Shape suffixes: B completions, T their tokens, R places where logits are read, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dro_rl.policy.attention import NotAttended, Packed
from dro_rl.policy.completion import Completion
from dro_rl.policy.trie import pack

CHUNK = 2**24
"""Logits made at a time [elements]; more are made again in the backward pass."""


@dataclass(frozen=True, slots=True)
class Forward:
    """Where completions are predicted, and what the model made there.

    hidden_R: what the output embedding reads, (R, hidden). logits_R: what it made of it, (R, V),
    or None where that is still to be done. tables: of each of the R, the tokens that are allowed.
    places: for every completion token, rows then tokens, which of the R predicts it.
    """

    completions: Sequence[Completion]
    head: Any
    hidden_R: Tensor
    logits_R: Tensor | None
    tables: Sequence[Sequence[int] | None]
    places: np.ndarray

    def log_likelihoods(self) -> Tensor:
        """(B, T)."""
        order = np.argsort(self.places, kind="stable")
        places, device = self.places[order], self.hidden_R.device
        labels = np.fromiter((t for c in self.completions for t in c.token_ids), np.int64)[order]
        found, parts = [], self._parts()
        for part in parts:
            inside = slice(*np.searchsorted(places, (part.start, part.stop)))
            chosen = torch.from_numpy(places[inside] - part.start).to(device)
            wanted = torch.from_numpy(labels[inside]).to(device)
            if len(parts) > 1 and torch.is_grad_enabled():
                read = checkpoint(self._read, part, chosen, wanted, use_reentrant=False)
            else:
                read = self._read(part, chosen, wanted)
            found.append(read)
        back = torch.from_numpy(np.argsort(order)).to(device)
        return self._scatter(torch.cat(found)[back])

    def _parts(self) -> list[slice]:
        """A chunk of logits each."""
        total = len(self.hidden_R)
        rows = total if self.logits_R is not None else max(1, CHUNK // self.head.weight.shape[0])
        return [slice(start, min(start + rows, total)) for start in range(0, total, rows)]

    def _read(self, part: slice, chosen: Tensor, labels: Tensor) -> Tensor:
        logits = self.head(self.hidden_R[part]) if self.logits_R is None else self.logits_R[part]
        logits = _mask_disallowed(logits.float(), self.tables[part])
        return logits.log_softmax(-1)[chosen, labels]

    def values(self, head: nn.Linear) -> Tensor:
        """(B, T)."""
        with torch.autocast(self.hidden_R.device.type, enabled=False):
            values_R = head(self.hidden_R.float())[..., 0]
        return self._scatter(values_R[torch.from_numpy(self.places).to(values_R.device)])

    def _scatter(self, values: Tensor) -> Tensor:
        """(completion tokens,) to (B, T), 0 elsewhere."""
        sizes = np.array([len(c.token_ids) for c in self.completions])
        rows = np.repeat(np.arange(len(sizes)), sizes)
        columns = np.arange(sizes.sum()) - np.repeat(sizes.cumsum() - sizes, sizes)
        out = torch.zeros(len(sizes), int(sizes.max()), device=values.device)
        where = tuple(torch.from_numpy(at).to(values.device) for at in (rows, columns))
        return out.index_put(where, values)


def packed(model: Any, completions: Sequence[Completion]) -> Forward:
    trie = pack([c.read for c in completions])
    nodes = [
        int(node)
        for c, path in zip(completions, trie.paths, strict=True)
        for node in path[len(c.prompt_ids) - 1 :]
    ]
    reads = list(zip(nodes, _allowed(completions), strict=True))
    index = {read: i for i, read in enumerate(dict.fromkeys(reads))}
    device = model.device
    row = Packed(trie, device)
    with _output_embedding(model, skip=True) as (head, seen):
        model(
            input_ids=torch.from_numpy(trie.ids_N).to(device)[None],
            attention_mask=row.no_mask(),
            position_ids=torch.from_numpy(trie.depths_N).to(device)[None],
            use_cache=False,
            logits_to_keep=torch.tensor([node for node, _ in index]).to(device),
            trie=row,
        )
    if not row.attended:
        raise NotAttended
    places = np.fromiter((index[read] for read in reads), np.int64)
    return Forward(completions, head, seen[0][0], None, [table for _, table in index], places)


def dense(model: Any, completions: Sequence[Completion]) -> Forward:
    """Rows are padded on the right and carry no attention mask: causal attention never looks right,
    so the padding cannot be seen, and attention keeps its fastest kernel."""
    reads = [c.read for c in completions]
    ids = torch.zeros(len(reads), max(map(len, reads)), dtype=torch.long)
    for row, read in enumerate(reads):
        ids[row, : len(read)] = torch.tensor(read)
    starts = [len(c.prompt_ids) - 1 for c in completions]  # where the first token is predicted
    columns = [
        s + t for c, s in zip(completions, starts, strict=True) for t in range(len(c.token_ids))
    ]
    kept = sorted(set(columns))
    rows = [row for row, c in enumerate(completions) for _ in c.token_ids]
    device = model.device
    with _output_embedding(model, skip=False) as (head, seen):
        logits = model(
            input_ids=ids.to(device),
            use_cache=False,
            logits_to_keep=torch.tensor(kept).to(device),
        ).logits
    at = torch.tensor(rows).to(device), torch.tensor(np.searchsorted(kept, columns)).to(device)
    tables = _allowed(completions)
    return Forward(completions, head, seen[0][at], logits[at], tables, np.arange(len(rows)))


@contextmanager
def _output_embedding(model: Any, *, skip: bool) -> Iterator[tuple[Any, list[Tensor]]]:
    """The output embedding, and a list that will hold what it read.

    With `skip` it makes the logits of one place alone: the others are for the caller to make. The
    model's own forward still runs, since wrappers (FSDP, peft) hang on it.
    """
    seen: list[Tensor] = []

    def read(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        seen.append(inputs[0])
        return (inputs[0][:, :1],) if skip else None

    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(read)
    try:
        yield head, seen
    finally:
        hook.remove()


def _allowed(completions: Sequence[Completion]) -> list[tuple[int, ...] | None]:
    """Of every completion token, rows then tokens."""
    return [
        None if c.allowed is None else tuple(c.allowed[t])
        for c in completions
        for t in range(len(c.token_ids))
    ]


def _mask_disallowed(logits_R_V: Tensor, tables: Sequence[Sequence[int] | None]) -> Tensor:
    """-inf where constrained decoding could not have gone."""
    if all(table is None for table in tables):
        return logits_R_V
    keep = torch.zeros(logits_R_V.shape, dtype=torch.bool)
    for row, table in enumerate(tables):
        keep[row, slice(None) if table is None else list(table)] = True
    return logits_R_V.masked_fill(~keep.to(logits_R_V.device), float("-inf"))
