"""log p(completion | prompt) of a causal LM, with logits on completion tokens only.

Rows are padded on the right and carry no attention mask: causal attention never looks right, so
the padding cannot be seen, and attention keeps its fastest kernel. Shape suffixes: B rows,
T tokens, C completion positions that any row of the batch needs, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

AllowedTokens = Sequence[Sequence[int]]


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


def log_likelihood(model: PreTrainedModel, completions: Sequence[Completion]) -> Tensor:
    """Sum over tokens of log p(completion | prompt) [nats], float32, one a completion: (B,)."""
    logps_B_T = token_log_likelihoods(model, completions)
    return logps_B_T.sum(1)


def token_log_likelihoods(model: PreTrainedModel, completions: Sequence[Completion]) -> Tensor:
    """log p of every completion token [nats], float32.

    Args:
        model: a causal LM; its dtype (or autocast) is the dtype of the forward pass.
        completions: B completions, each of at least one token after at least one prompt token.
    Returns:
        (B, T): T is the longest completion; positions after a row's end hold exactly 0.
    """
    layout = _Layout(completions)
    return layout.log_likelihoods(layout.logits(model))


def token_log_likelihoods_and_values(
    model: Any, head: nn.Linear, completions: Sequence[Completion]
) -> tuple[Tensor, Tensor]:
    """log p of every completion token [nats], and the value of the state before it.

    The state is what the model's output embedding reads, so any causal LM has one.

    Args:
        head: from the model's hidden size to 1.
    Returns:
        both (B, T) float32, 0 after a row's end.
    """
    read: list[Tensor] = []
    output = model.get_output_embeddings()
    hook = output.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    try:
        layout = _Layout(completions)
        logits_B_C_V = layout.logits(model)
    finally:
        hook.remove()
    with torch.autocast(head.weight.device.type, enabled=False):
        values_B_C = head(read[0].float())[..., 0]
    return layout.log_likelihoods(logits_B_C_V), layout.scatter(layout.gather(values_B_C))


class _Layout:
    """Completions as right-padded rows: where each token goes in, and where its logits come out."""

    def __init__(self, completions: Sequence[Completion]) -> None:
        self.completions = completions
        longest = max(map(len, completions))
        self.ids = torch.zeros(len(completions), longest - 1, dtype=torch.long)
        for row, c in enumerate(completions):
            joined = (*c.prompt_ids, *c.token_ids)[:-1]  # the last token is predicted, never read
            self.ids[row, : len(joined)] = torch.tensor(joined)
        starts = [len(c.prompt_ids) - 1 for c in completions]  # where the first token is predicted
        needed = {p for c, s in zip(completions, starts, strict=True) for p in _span(c, s)}
        self.keep_C = torch.tensor(sorted(needed))
        self.widest = max(len(c.token_ids) for c in completions)
        positions, labels, real = (
            torch.zeros(len(completions), self.widest, dtype=dtype)
            for dtype in (torch.long, torch.long, torch.bool)
        )
        for row, c in enumerate(completions):
            n = len(c.token_ids)
            span = torch.tensor(_span(c, starts[row]))
            positions[row, :n] = torch.searchsorted(self.keep_C, span)
            labels[row, :n] = torch.tensor(c.token_ids)
            real[row, :n] = True
        self.rows, self.columns = real.nonzero(as_tuple=True)
        self.positions_N = positions[self.rows, self.columns]
        self.labels_N = labels[self.rows, self.columns]

    def logits(self, model: Any) -> Tensor:
        """(B, C, V), in the dtype of the forward pass."""
        device = model.device
        return model(
            input_ids=self.ids.to(device), use_cache=False, logits_to_keep=self.keep_C.to(device)
        ).logits

    def log_likelihoods(self, logits_B_C_V: Tensor) -> Tensor:
        """(B, T) of the completions' tokens."""
        logits_N_V = _mask_disallowed(self.gather(logits_B_C_V).float(), self.completions)
        labels_N = self.labels_N.to(logits_N_V.device)
        return self.scatter(logits_N_V.log_softmax(-1).gather(1, labels_N[:, None])[:, 0])

    def gather(self, kept: Tensor) -> Tensor:
        """(B, C, ...) at kept positions to (N, ...) by completion token: rows, then tokens."""
        device = kept.device
        return kept[self.rows.to(device), self.positions_N.to(device)]

    def scatter(self, values_N: Tensor) -> Tensor:
        """(N,) to (B, T), 0 elsewhere."""
        device = values_N.device
        out = torch.zeros(len(self.completions), self.widest, device=device)
        return out.index_put((self.rows.to(device), self.columns.to(device)), values_N)


def _span(completion: Completion, start: int) -> range:
    return range(start, start + len(completion.token_ids))


def _mask_disallowed(logits_N_V: Tensor, completions: Sequence[Completion]) -> Tensor:
    """-inf where constrained decoding could not have gone; N runs over rows, then tokens."""
    if all(c.allowed is None for c in completions):
        return logits_N_V
    everything = range(logits_N_V.shape[1])
    tables = [row for c in completions for row in (c.allowed or [everything] * len(c.token_ids))]
    keep = torch.zeros(logits_N_V.shape, dtype=torch.bool)
    for row, allowed in enumerate(tables):
        keep[row, list(allowed)] = True
    return logits_N_V.masked_fill(~keep.to(logits_N_V.device), float("-inf"))
