"""What a policy, a causal LM or an encoder, is asked the likelihood of, and by what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

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
