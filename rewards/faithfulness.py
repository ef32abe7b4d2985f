"""How much of the generator's greedy answer stands in the documents that it was given: an answer
from the model's own memory earns little, right or wrong.

Range: [0, 1]; 0 for an empty answer. Scale: linear. Source: K-Precision, Adlakha et al., TACL 2024,
arXiv 2307.16877.
"""

from collections import Counter
from collections.abc import Sequence

from dro_rl.evaluation.answers import normalise_answer
from dro_rl.records import Outcome
from dro_rl.reward import Reward


class Faithfulness(Reward):
    """Share of the answer's normalised words that occur in the selected documents, titles included,
    each as often as it occurs there."""

    needs = ("answer",)

    def score(self, outcomes: Sequence[Outcome]) -> list[float]:
        return [_precision(o) for o in outcomes]


def _precision(outcome: Outcome) -> float:
    documents = [outcome.example.candidates[i] for i in outcome.documents]
    read = normalise_answer("\n".join(f"{d.title}\n{d.text}" for d in documents)).split()
    said = normalise_answer(outcome.answer or "").split()
    return (Counter(said) & Counter(read)).total() / len(said) if said else 0.0
