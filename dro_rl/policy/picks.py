"""A policy that picks documents by score, one after the other without replacement: Plackett-Luce.

    log p(z|x) = sum_k [ s_{z_k} - log sum_{j still to pick} exp s_j ]

Plackett, "The Analysis of Permutations", 1975. Scores s may depend on what was picked before
(`conditional`). Shapes: S states, N candidates, B selections, K picks, m samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from dro_rl.records import Example

Documents = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class State:
    """What scores depend on: a question with its candidates, and which of them have been picked;
    of a policy that scores once, none."""

    example: Example
    picked: Documents = ()


@dataclass(frozen=True, slots=True)
class Picks:
    """A selection of an example's candidates: what `Completion` is for a causal LM, a token being
    the place of a document."""

    example: Example
    token_ids: Documents
    conditional: bool = False

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def asked(self) -> tuple[Example, Documents]:
        """What `EncoderWorker.probe` takes."""
        return self.example, self.token_ids

    @property
    def states(self) -> list[State]:
        """Before each pick."""
        if not self.conditional:
            return [State(self.example)] * len(self.token_ids)
        return [State(self.example, self.token_ids[:k]) for k in range(len(self.token_ids))]


def pick_logps(scores_S_N: Tensor, states: Sequence[State], selections: Sequence[Picks]) -> Tensor:
    """log p of each pick [nats], with the scores' graph: (B, K), 0 after a selection's end.

    Args:
        scores_S_N: -inf beyond a state's candidates.
        states: those of the rows; every state of the selections is among them.
    """
    row = {state: i for i, state in enumerate(states)}
    longest = max(map(len, selections))
    rows_B_K = torch.zeros(len(selections), longest, dtype=torch.long)
    picks_B_K = torch.zeros_like(rows_B_K)
    taken = torch.zeros(len(selections), longest, scores_S_N.shape[1], dtype=torch.bool)
    real = torch.zeros(len(selections), longest, dtype=torch.bool)
    for b, selection in enumerate(selections):
        ids = selection.token_ids
        rows_B_K[b, : len(ids)] = torch.tensor([row[state] for state in selection.states])
        picks_B_K[b, : len(ids)] = torch.tensor(ids)
        real[b, : len(ids)] = True
        for k, before in enumerate(accumulate(ids, lambda a, d: (*a, d), initial=())):
            if k < len(ids):
                taken[b, k, list(before)] = True
    device = scores_S_N.device
    left = scores_S_N[rows_B_K.to(device)].masked_fill(taken.to(device), -torch.inf)
    logps = left.log_softmax(-1).gather(-1, picks_B_K.to(device)[..., None])[..., 0]
    return logps.masked_fill(~real.to(device), 0.0)


def gumbel(count: int, candidates: int, dice: torch.Generator) -> Tensor:
    """Independent standard Gumbel noise, float64: (count, candidates)."""
    return -torch.empty(count, candidates, dtype=torch.float64).exponential_(generator=dice).log()


def top_k(noisy_m_N: Tensor, k: int) -> list[Documents]:
    """The k largest of each row, the largest first. Of scores with Gumbel noise it is a sample of
    Plackett-Luce: Kool, van Hoof and Welling, arXiv 1903.06059, sec. 2.3."""
    return [tuple(row) for row in noisy_m_N.topk(k, dim=-1).indices.tolist()]
