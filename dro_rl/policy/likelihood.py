"""log p(completion | prompt) of a causal LM.

Two ways, equal in value and gradient. *Trie*: all completions packed into one row of tries, so that
what they share (a prompt, leading documents) is computed once, nothing is padded, and logits are
made where a completion is predicted, a chunk at a time. *Dense*: a padded row a completion, for
models whose attention is not plain (`attention.unsupported`), and to check the other. Shape
suffixes: B completions, T their tokens, R places where logits are read, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from dro_rl.errors import UserError
from dro_rl.policy.attention import NotAttended, unsupported, use_trie_attention
from dro_rl.policy.completion import AnyCompletion, AnyLikelihood, Completion
from dro_rl.policy.forward import Forward, dense, packed
from dro_rl.policy.memory import is_out_of_memory
from dro_rl.policy.trie import packed_length


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

    def _forward(self, completions: Sequence[Completion]) -> Forward:
        if self.checks_by_itself:
            self.check(completions)
        alone = self._checks and len(completions) == 1  # nothing to gain, and nothing to check by
        if alone or self.why_dense is not None:
            return dense(self.model, completions)
        return packed(self.model, completions)

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
                plain = dense(self.model, some)
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
            return packed(self.model, some).log_likelihoods()
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
