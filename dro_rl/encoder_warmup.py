"""Supervised training of an encoder on gold documents, which reinforcement learning is compared to.

The loss is list-wise: the cross-entropy of the gold documents and the softmax of the scores
(ListNet, Cao et al., ICML 2007). Against the question's other candidates alone it is what rerankers
are trained with; against the gold documents of the batch's other questions too, it is in-batch
contrastive (Karpukhin et al., arXiv 2004.04906, sec. 3.2; sentence-transformers'
MultipleNegativesRankingLoss).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from dro_rl.errors import UserError
from dro_rl.policy.picks import Picks
from dro_rl.policy.targets import Target
from dro_rl.recipe import Recipe
from dro_rl.records import Example
from dro_rl.sections.encoder import EncoderSelector


def drawing(
    recipe: Recipe, section: EncoderSelector, questions: Sequence[Example]
) -> Callable[[], list[list[Target]]]:
    """What draws the next batch, the targets of each of its questions: passes over all of them in
    ever new orders.

    Raises:
        UserError: no question has a gold document.
    """
    usable = [e for e in questions if _gold(e)]
    if not usable:
        raise UserError(
            "dro-rl warmup trains an encoder on gold documents, and no training question has one "
            "among its candidates: take data that says which they are, or train without a warm-up"
        )
    rng = random.Random(f"warmup/selector/{recipe.training.seed}")
    size = min(recipe.warmup.batch_size, len(usable))
    left: list[Example] = []

    def draw() -> list[list[Target]]:
        while len(left) < size:
            left.extend(rng.sample(usable, len(usable)))
        batch, left[:size] = left[:size], []
        if recipe.warmup.negatives == "batch":
            batch = [_against(example, batch) for example in batch]
        return [targets(section, example, rng) for example in batch]

    return draw


def targets(section: EncoderSelector, example: Example, rng: random.Random) -> list[Target]:
    """Of one question: every gold document as the first pick; of a conditional policy all of them,
    K at most, in a random order."""
    gold = _gold(example)
    if section.conditional:
        order = tuple(rng.sample(gold, min(section.documents, len(gold))))
        return [Target((Picks(example, order, True),))]
    return [Target((Picks(example, (document,)),), 1 / len(gold)) for document in gold]


def _gold(example: Example) -> list[int]:
    return [i for i, document in enumerate(example.candidates) if document.is_gold]


def _against(example: Example, batch: Sequence[Example]) -> Example:
    """The question with the gold documents of the others as candidates too."""
    own = {(d.title, d.text) for d in example.candidates}
    others = {
        (d.title, d.text): replace(d, is_gold=False)
        for other in batch
        for d in other.candidates
        if d.is_gold and (d.title, d.text) not in own
    }
    return replace(example, candidates=(*example.candidates, *others.values()), scores=())
