"""Documents ranked by themselves, for `algorithm.kind: independent`.

A document's probability p(d_k|x) is the selector's of naming it first, among all identifiers. The
engine draws one identifier at a time, with those that are taken masked out: greedily that ranks the
documents; sampled it draws without replacement (Plackett-Luce).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from dro_rl.policy.distinct import SelectionGrammar
from dro_rl.prompts import Prompt, PromptWriter, read_selection, write_selection
from dro_rl.records import Example, Selection
from dro_rl.rollout.engine import Engine

Pick = tuple[int, float]
"""A document, and its log-probability [nats] among those that were left."""


class IndependentRanker:
    """Draws documents one by one from a selector's engine."""

    def __init__(self, engine: Engine, writer: PromptWriter) -> None:
        self.engine, self.writer = engine, writer
        self._grammars: dict[tuple[int, tuple[int, ...]], SelectionGrammar] = {}

    def single(
        self, examples: Sequence[Example], prompts: Sequence[Prompt], count: int
    ) -> list[tuple[Selection, ...]]:
        """The `count` likeliest documents of each example, each a selection of its own.

        A selection's log-probability is log p(d_k|x) among all candidates: what is left after the
        likelier ones is prod_j (1 - p_j), with p_j their probability when they were drawn.
        """
        groups = []
        for picks in self._draw(examples, prompts, count, 0, greedy=True):
            left, selections = 0.0, []
            for document, logp in picks:
                selections.append(self._selection((document,), left + logp))
                left += math.log(max(-math.expm1(logp), 1e-45))
            groups.append(tuple(selections))
        return groups

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
        repeated = [e for e in examples for _ in range(samples)]
        prompts = [p for p in prompts for _ in range(samples)]
        flat = [
            self._selection(tuple(d for d, _ in picks), sum(logp for _, logp in picks))
            for picks in self._draw(repeated, prompts, k, seed, greedy=greedy)
        ]
        return [tuple(flat[i : i + samples]) for i in range(0, len(flat), samples)]

    def _draw(
        self,
        examples: Sequence[Example],
        prompts: Sequence[Prompt],
        k: int,
        seed: int,
        *,
        greedy: bool,
    ) -> list[list[Pick]]:
        picks: list[list[Pick]] = [[] for _ in examples]
        sizes = [len(e.candidates) for e in examples]
        for turn in range(min(k, max(sizes))):
            rows = [i for i, n in enumerate(sizes) if turn < n]
            taken = [tuple(sorted(d for d, _ in picks[i])) for i in rows]
            drawn = self.engine.generate(
                [prompts[i].token_ids for i in rows],
                samples=1,
                seed=seed + turn,
                greedy=greedy,
                on_policy=True,
                grammars=[self._grammar(sizes[i], t) for i, t in zip(rows, taken, strict=True)],
            )
            for i, (sample,) in zip(rows, drawn, strict=True):
                (document,), _ = read_selection(self.writer.decode(sample.token_ids), sizes[i], 1)
                picks[i].append((document, sum(sample.logps)))
        return picks

    def _grammar(self, n: int, taken: tuple[int, ...]) -> SelectionGrammar:
        if (n, ()) not in self._grammars:
            self._grammars[n, ()] = SelectionGrammar(self.writer, n, 1)
        if (n, taken) not in self._grammars:
            self._grammars[n, taken] = self._grammars[n, ()].without(taken)
        return self._grammars[n, taken]

    def _selection(self, documents: tuple[int, ...], logp: float) -> Selection:
        text = write_selection(documents)
        token_ids = self.writer.completion(text)
        # The whole log-probability stands at the first token: which identifier was a single choice.
        logps = (logp,) + (0.0,) * (len(token_ids) - 1)
        return Selection(text, token_ids, logps, documents, False)
