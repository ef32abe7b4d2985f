"""The grammar of selections: which tokens may come next so that only valid selections are written.

A valid selection is "[i] > [j] > ..." with 1 to k distinct identifiers of at most n, then the
end-of-sequence token. The engine samples among the allowed tokens and the learner scores among
the same ones, so both see one distribution.

The automaton works on token ids. A selection is a sequence of pieces, "[3]" and then " > [1]" for
each further identifier; a piece is one token or several ("[12]" may be "[", "1", "2", "]"), and
the pieces not yet used form the trie that the next token walks.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from functools import lru_cache
from itertools import pairwise, permutations

from dro_rl.errors import UserError
from dro_rl.prompts import PromptWriter, write_selection

Tokens = tuple[int, ...]
State = tuple[tuple[int, ...], Tokens]
"""Identifiers written (0-based), and the tokens of the piece that is being written."""

_CACHED_PREFIXES = 100_000


class SelectionGrammar:
    """The automaton of well-formed selections of at most k distinct identifiers of 1..n.

    Args:
        writer: its tokenizer and style decide the tokens, as in `PromptWriter.completion`.
        n: candidates, at least 1.
        k: most identifiers.
    Raises:
        UserError: the tokenizer does not write selections piece by piece.
    """

    def __init__(self, writer: PromptWriter, n: int, k: int) -> None:
        self.style, self.n, self.k = writer.style, n, min(k, n)
        self.eos: int = writer.completion("")[-1]
        self.excluded: tuple[int, ...] = ()
        self._first, self._further = _pieces(writer, n, self.k)
        self._forget()

    def without(self, documents: Sequence[int]) -> SelectionGrammar:
        """The same grammar less some documents (0-based), at least one of which has to be left."""
        rest = copy(self)
        rest.excluded = tuple(sorted(documents))
        rest.k = min(self.k, self.n - len(rest.excluded))
        rest._forget()
        return rest

    def _forget(self) -> None:
        self._state = lru_cache(_CACHED_PREFIXES)(self._reach)
        self._allowed = lru_cache(_CACHED_PREFIXES)(self._follow)

    def allowed(self, prefix_ids: Sequence[int]) -> list[int]:
        """Token ids that may follow `prefix_ids`, sorted; at least one.

        Args:
            prefix_ids: the completion's tokens so far, all of them allowed in their place.
        Raises:
            ValueError: they are not.
        """
        return list(self._allowed(self._state(tuple(prefix_ids))))

    def allowed_table(self, completion_ids: Sequence[int]) -> list[list[int]]:
        """For each token of a completion, the token ids that it was sampled among.

        Raises:
            ValueError: the completion cannot have been sampled under this grammar.
        """
        table = [self.allowed(completion_ids[:t]) for t in range(len(completion_ids))]
        if completion_ids and completion_ids[-1] not in table[-1]:
            raise self._not_a_selection(completion_ids)
        return table

    def _reach(self, prefix: Tokens) -> State:
        """The state after `prefix`, one token on from the state of all but its last."""
        if not prefix:
            return (), ()
        state = self._state(prefix[:-1])
        if prefix[-1] == self.eos or prefix[-1] not in self._allowed(state):
            raise self._not_a_selection(prefix)
        used, begun = state
        begun = (*begun, prefix[-1])
        for i, piece in enumerate(self._further if used else self._first):
            if piece == begun and i not in used and i not in self.excluded:
                return (*used, i), ()
        return used, begun

    def _follow(self, state: State) -> Tokens:
        used, begun = state
        if len(used) == self.k:
            return (self.eos,)
        pieces = self._further if used else self._first
        size = len(begun)
        gone = {*used, *self.excluded}
        allowed = {
            piece[size] for i, piece in enumerate(pieces) if i not in gone and piece[:size] == begun
        }
        if used and not begun:
            allowed.add(self.eos)
        return tuple(sorted(allowed))

    def _not_a_selection(self, token_ids: Sequence[int]) -> ValueError:
        return ValueError(
            f"tokens {list(token_ids)} begin no selection of {self.k} of {self.n} documents"
        )


def _pieces(writer: PromptWriter, n: int, k: int) -> tuple[list[Tokens], list[Tokens]]:
    """The tokens of "[i]" and of " > [i]" for i = 1..n; the latter are empty when k is 1.

    Raises:
        UserError: the tokens of a selection are not its pieces' in a row, or a piece begins with
            another, so that the tokens would not tell where an identifier ends.
    """

    def tokens(*documents: int) -> Tokens:
        return writer.completion(write_selection(documents))[:-1]

    first = [tokens(i) for i in range(n)]
    if k == 1:
        further: list[Tokens] = []
    else:
        further = [tokens((i + 1) % n, i)[len(first[(i + 1) % n]) :] for i in range(n)]
    samples = [*permutations(range(n), 2), tuple(range(k))] if k > 1 else []
    joined = all(tokens(*s) == sum((further[i] for i in s[1:]), first[s[0]]) for s in samples)
    if not joined or not _prefix_free(first) or not _prefix_free(further):
        raise UserError(
            'rollout.decoding: distinct needs a tokenizer that writes "[1] > [2]" identifier by '
            f"identifier, and that of {writer.tokenizer.name_or_path or 'this model'} does not: "
            "use rollout.decoding: free"
        )
    return first, further


def _prefix_free(pieces: list[Tokens]) -> bool:
    """In sorted order a sequence that begins others comes right before one of them."""
    ordered = sorted(pieces)
    return all(a and b[: len(a)] != a for a, b in pairwise(ordered))
