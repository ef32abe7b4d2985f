"""Documents ranked by themselves, for `algorithm.kind: independent`.

A document's probability p(d_k|x) is the selector's of naming it first, among all identifiers. The
engine takes one identifier after another greedily, with those that are taken masked out, until all
that matter are known; selections are then drawn without replacement (Plackett-Luce).
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache

from dro_rl.policy.distinct import SelectionGrammar
from dro_rl.prompts import Prompt, PromptWriter, read_selection, write_selection
from dro_rl.records import Example, Selection
from dro_rl.rollout.engine import Engine, Tokens

_RESOLUTION = 2**-24
"""Of float32: what may be left beside a probability that an engine rounds to 1."""

Ranking = dict[int, float]
"""Documents, the likeliest first, with log p(d_k|x) [nats] among all candidates."""


class IndependentRanker:
    """Ranks and draws documents by a selector's engine."""

    def __init__(self, engine: Engine, writer: PromptWriter) -> None:
        self.engine, self.writer = engine, writer
        self._whole: dict[int, SelectionGrammar] = {}
        self._tokens = cache(lambda document: writer.completion(write_selection((document,))))

    def single(
        self, examples: Sequence[Example], prompts: Sequence[Prompt], count: int
    ) -> list[tuple[Selection, ...]]:
        """The `count` likeliest documents of each example, each a selection of its own, with
        log p(d_k|x) among all candidates."""
        return [
            tuple(self._selection((d,), logp) for d, logp in ranking.items())
            for ranking in self._rank(examples, prompts, count)
        ]

    def draw(
        self,
        examples: Sequence[Example],
        prompts: Sequence[Prompt],
        k: int,
        samples: int,
        seed: int,
        *,
        greedy: bool,
    ) -> list[tuple[Selection, ...]]:
        """`samples` selections of k documents of each example."""
        rankings = self._rank(examples, prompts, k if greedy else None)
        dice, groups = random.Random(seed), []
        for ranking in rankings:
            drawn = [
                tuple(ranking) if greedy else _without_replacement(ranking, k, dice)
                for _ in range(samples)
            ]
            groups.append(tuple(self._selection(d, _plackett_luce(ranking, d)) for d in drawn))
        return groups

    def _rank(
        self, examples: Sequence[Example], prompts: Sequence[Prompt], count: int | None
    ) -> list[Ranking]:
        """The `count` likeliest documents of each example; None for all."""
        found: list[Ranking] = [{} for _ in examples]
        left: list[dict[Tokens, float]] = [{} for _ in examples]
        sizes = [len(e.candidates) for e in examples]
        turns = [n if count is None or self._spread(n) else min(count, n) for n in sizes]
        for turn in range(max(turns)):
            rows = [i for i, n in enumerate(turns) if turn < n]
            drawn = self.engine.generate(
                [prompts[i].token_ids for i in rows],
                samples=1,
                seed=0,
                greedy=True,
                on_policy=True,
                grammars=[self._grammar(sizes[i], tuple(sorted(found[i]))) for i in rows],
            )
            for i, (sample,) in zip(rows, drawn, strict=True):
                (document,), _ = read_selection(self.writer.decode(sample.token_ids), sizes[i], 1)
                rest = [
                    self._tokens(d) for d in range(sizes[i]) if d not in found[i] and d != document
                ]
                found[i][document] = _take(left[i], sample.token_ids, sample.logps, rest)
        return [dict(sorted(f.items(), key=lambda item: -item[1])[:count]) for f in found]

    def _spread(self, n: int) -> bool:
        """Whether identifiers differ at more than one token ("[1]" and "[12]" by digits), where the
        likeliest token need not lead to the likeliest identifier."""
        following: defaultdict[Tokens, set[int]] = defaultdict(set)
        for identifier in map(self._tokens, range(n)):
            for j, token in enumerate(identifier):
                following[identifier[:j]].add(token)
        return sum(len(tokens) > 1 for tokens in following.values()) > 1

    def _grammar(self, n: int, taken: tuple[int, ...]) -> SelectionGrammar:
        if n not in self._whole:
            self._whole[n] = SelectionGrammar(self.writer, n, 1)
        return self._whole[n].without(taken)

    def _selection(self, documents: tuple[int, ...], logp: float) -> Selection:
        text = write_selection(documents)
        token_ids = self.writer.completion(text)
        # The whole log-probability stands at the first token: which identifier was a single choice.
        logps = (logp,) + (0.0,) * (len(token_ids) - 1)
        return Selection(text, token_ids, logps, documents, False)


def _take(
    left: dict[Tokens, float], tokens: Tokens, logps: Sequence[float], rest: Sequence[Tokens]
) -> float:
    """log p of an identifier among all, from its tokens' log-probabilities among those left.

    Identifiers are a trie of tokens. What was left at a node when a token was drawn there, times
    its probability among that, is its probability among all; `left` [nats] keeps it by node. A node
    loses a token with the last identifier behind it; `rest` are the identifiers that remain.
    """
    logp = sum(p + left.get(tokens[:j], 0.0) for j, p in enumerate(logps))
    for j in reversed(range(len(tokens))):
        if any(other[: j + 1] == tokens[: j + 1] for other in rest):
            break
        node = tokens[:j]
        left[node] = left.get(node, 0.0) + math.log(max(-math.expm1(logps[j]), _RESOLUTION))
    return logp


def _without_replacement(ranking: Mapping[int, float], k: int, dice: random.Random) -> Tokens:
    """k documents in the order drawn: the largest of log p plus Gumbel noise (Yellott 1977)."""
    noisy = {d: p - math.log(max(dice.expovariate(1), 1e-300)) for d, p in ranking.items()}
    return tuple(sorted(noisy, key=lambda d: -noisy[d])[:k])


def _plackett_luce(ranking: Mapping[int, float], documents: Sequence[int]) -> float:
    """log-probability [nats] of drawing these documents in this order."""
    total, left = 0.0, 1.0
    for d in documents:
        total += ranking[d] - math.log(left)
        left = max(left - math.exp(ranking[d]), _RESOLUTION)
    return total
