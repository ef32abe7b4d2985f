"""log p(completion | prompt) of a causal LM, with logits on completion tokens only.

Rows are padded on the right and carry no attention mask: causal attention never looks right, so
the padding cannot be seen, and attention keeps its fastest kernel. Shape suffixes: B rows,
T tokens, C completion positions that any row of the batch needs, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
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
    device = model.device
    longest = max(map(len, completions))
    ids = torch.zeros(len(completions), longest - 1, dtype=torch.long)
    for row, c in enumerate(completions):
        joined = (*c.prompt_ids, *c.token_ids)[:-1]  # the last token is predicted, never read
        ids[row, : len(joined)] = torch.tensor(joined)
    starts = [len(c.prompt_ids) - 1 for c in completions]  # where a row's first token is predicted
    needed = {p for c, s in zip(completions, starts, strict=True) for p in _span(c, s)}
    keep_C = torch.tensor(sorted(needed))
    logits_B_C_V = model(
        input_ids=ids.to(device), use_cache=False, logits_to_keep=keep_C.to(device)
    ).logits

    widest = max(len(c.token_ids) for c in completions)
    positions, labels, real = (
        torch.zeros(len(completions), widest, dtype=dtype)
        for dtype in (torch.long, torch.long, torch.bool)
    )
    for row, c in enumerate(completions):
        n = len(c.token_ids)
        span = torch.tensor(_span(c, starts[row]))
        positions[row, :n] = torch.searchsorted(keep_C, span)
        labels[row, :n] = torch.tensor(c.token_ids)
        real[row, :n] = True
    rows, columns = real.nonzero(as_tuple=True)
    logits_N_V = logits_B_C_V[rows.to(device), positions[rows, columns].to(device)].float()
    logits_N_V = _mask_disallowed(logits_N_V, completions)
    picked_N = logits_N_V.log_softmax(-1).gather(1, labels[rows, columns, None].to(device))[:, 0]
    out = torch.zeros(len(completions), widest, device=device)
    return out.index_put((rows.to(device), columns.to(device)), picked_N)


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
