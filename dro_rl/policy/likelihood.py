"""log p(completion | prompt) of a causal LM.

Two ways, equal in value and gradient. *Trie*: all completions packed into one row of tries, so that
what they share (a prompt, leading documents) is computed once, nothing is padded, and logits are
made where a completion is predicted, a chunk at a time. *Dense*: a padded row a completion, for
models whose attention is not plain (`attention.unsupported`), and to check the other. Shape
suffixes: B completions, T their tokens, R places where logits are read, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dro_rl.errors import UserError
from dro_rl.policy.attention import NotAttended, Packed, unsupported, use_trie_attention
from dro_rl.policy.memory import is_out_of_memory
from dro_rl.policy.trie import pack, packed_length

AllowedTokens = Sequence[Sequence[int]]

_CHUNK = 2**24
"""Logits made at a time [elements]; more are made again in the backward pass."""


@dataclass(frozen=True, slots=True)
class Completion:
    """A completion after a prompt, as token ids.

    `allowed` holds, for every completion token, the token ids it was sampled among (constrained
    decoding); None means the whole vocabulary.
    """

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    allowed: AllowedTokens | None = None

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.token_ids)

    @property
    def asked(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """See `AnyCompletion`."""
        return self.prompt_ids, self.token_ids

    @property
    def read(self) -> tuple[int, ...]:
        """The tokens that the model reads: the last is predicted, never read."""
        return (*self.prompt_ids, *self.token_ids[:-1])


class AnyCompletion(Protocol):
    """What a policy is asked the likelihood of: tokens, or documents picked one by one."""

    @property
    def token_ids(self) -> tuple[int, ...]: ...

    @property
    def asked(self) -> tuple[Any, ...]:
        """What the policy's other users are asked the same with: the arguments of `probe`."""
        ...

    def __len__(self) -> int: ...


class AnyLikelihood(Protocol):
    """Log-likelihoods under one policy: a causal LM's (`Likelihood`), or an encoder's. Completions
    are of the policy's own kind."""

    why_dense: str | None
    checks_by_itself: bool

    def describe(self) -> str: ...
    def cost(self, completions: Sequence[Any]) -> int: ...
    def of(self, completions: Sequence[Any]) -> Tensor: ...
    def tokens(self, completions: Sequence[Any]) -> Tensor: ...
    def check(self, completions: Sequence[Any]) -> None: ...


class Likelihood:
    """Log-likelihoods under one model, which may learn between calls.

    The first completions that share a beginning are computed both ways, and have to agree.

    Args:
        model: a causal LM, with or without peft; its dtype (or autocast) is that of the forward.
        way: "auto" takes the trie where the model can; "dense" never.
    """

    def __init__(self, model: Any, way: str = "auto") -> None:
        self.model = model
        plain = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.why_dense = "as the recipe says" if way == "dense" else unsupported(plain)
        self._checks = 3  # left, of completions that share nothing; none after those that do
        self.checks_by_itself = True  # else somebody calls `check`, which ranks have to do at once
        if self.why_dense is None:
            use_trie_attention(plain)

    def describe(self) -> str:
        """Which way, for people."""
        return "trie" if self.why_dense is None else f"dense ({self.why_dense})"

    def cost(self, completions: Sequence[Completion]) -> int:
        """Tokens that a forward pass over them takes."""
        if not completions:
            return 0
        if self.why_dense is None:
            return packed_length([c.read for c in completions])
        return len(completions) * max(len(c) - 1 for c in completions)

    def of(self, completions: Sequence[Completion]) -> Tensor:
        """Sum over tokens of log p(completion | prompt) [nats], float32: (B,)."""
        return self.tokens(completions).sum(1)

    def tokens(self, completions: Sequence[Completion]) -> Tensor:
        """log p of every completion token [nats], float32.

        Args:
            completions: B of them, each of at least one token after at least one prompt token.
        Returns:
            (B, T): T is the longest completion; positions after a row's end hold exactly 0.
        Raises:
            UserError: on first use, the trie's values are not the dense way's; see `check`.
        """
        return self._forward(completions).log_likelihoods()

    def tokens_and_values(
        self, completions: Sequence[Completion], head: nn.Linear
    ) -> tuple[Tensor, Tensor]:
        """log p of every completion token [nats], and the value of the state before it.

        The state is what the model's output embedding reads, so any causal LM has one.

        Args:
            head: from the model's hidden size to 1.
        Returns:
            both (B, T) float32, 0 after a row's end.
        """
        forward = self._forward(completions)
        return forward.log_likelihoods(), forward.values(head)

    def _forward(self, completions: Sequence[Completion]) -> _Forward:
        if self.checks_by_itself:
            self.check(completions)
        alone = self._checks and len(completions) == 1  # nothing to gain, and nothing to check by
        if alone or self.why_dense is not None:
            return _dense(self.model, completions)
        return _packed(self.model, completions)

    def check(self, completions: Sequence[Completion]) -> None:
        """Compare both ways, where that is still to be done, on a few of these completions, two
        that share most among them. A model that does not take its attention from where it says
        takes the dense way from now on.

        Raises:
            UserError: the ways disagree, or the trie's fails.
        """
        if self.why_dense is not None or not self._checks or len(completions) < 2:
            return
        some = _alike(completions)
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                plain = _dense(self.model, some)
                slow = plain.log_likelihoods()
                fast = self._tried(some)
        except NotAttended:
            self.why_dense = "its attention does not follow its configuration"
            print(f"{type(self.model).__name__}: {self.describe()}", flush=True)
            return
        finally:
            self.model.train(training)
        low = torch.is_autocast_enabled(fast.device.type) or plain.hidden_R.dtype == torch.bfloat16
        apart = (fast - slow).abs().nan_to_num(nan=0).max().item()  # nan: -inf both times
        if not apart <= (0.25 if low else 1e-3):
            raise self._unfit(f"differs from the plain one by {apart:.2g} nats on a token")
        shared = self.cost(some) < sum(len(c.read) for c in some)
        self._checks = 0 if shared else self._checks - 1

    def _tried(self, some: Sequence[Completion]) -> Tensor:
        try:
            return _packed(self.model, some).log_likelihoods()
        except (RuntimeError, TypeError, ValueError) as error:
            if is_out_of_memory(error):
                raise  # says nothing of the model
            raise self._unfit(f"fails ({type(error).__name__}: {error})") from error

    def _unfit(self, what: str) -> UserError:
        return UserError(
            f"the shared-prefix forward of {type(self.model).__name__} {what}: set likelihood: "
            "dense for this policy, and please report the model"
        )


def _alike(completions: Sequence[Completion]) -> list[Completion]:
    """The two that have most in common from their beginning, the first and the last in order."""
    ordered = sorted(completions, key=lambda c: c.read)
    saved = [
        len(a.read) + len(b.read) - packed_length([a.read, b.read]) for a, b in pairwise(ordered)
    ]
    best = max(range(len(saved)), key=saved.__getitem__)
    chosen = dict.fromkeys((best, best + 1, 0, len(ordered) - 1))
    return [ordered[i] for i in chosen]


def batches(
    likelihood: AnyLikelihood, groups: Sequence[Sequence[AnyCompletion]], tokens: int
) -> Iterator[slice]:
    """Runs of groups, in their order, whose forward pass takes at most so many tokens; a larger
    group is alone in its run."""
    start, filled, rows, longest = 0, 0, 0, 0
    for i, group in enumerate(groups):
        cost, widest = likelihood.cost(group), max(map(len, group), default=1) - 1
        together = filled + cost
        if likelihood.why_dense is not None:
            together = (rows + len(group)) * max(longest, widest)  # padded to the longest of all
        if i > start and together > tokens:
            yield slice(start, i)
            start, filled, rows, longest = i, 0, 0, 0
        filled, rows, longest = filled + cost, rows + len(group), max(longest, widest)
    if groups:
        yield slice(start, len(groups))


@dataclass(frozen=True, slots=True)
class _Forward:
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
        rows = total if self.logits_R is not None else max(1, _CHUNK // self.head.weight.shape[0])
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


def _packed(model: Any, completions: Sequence[Completion]) -> _Forward:
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
    return _Forward(completions, head, seen[0][0], None, [table for _, table in index], places)


def _dense(model: Any, completions: Sequence[Completion]) -> _Forward:
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
    return _Forward(completions, head, seen[0][at], logits[at], tables, np.arange(len(rows)))


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
