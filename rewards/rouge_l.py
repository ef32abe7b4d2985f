"""Longest common subsequence of the generator's greedy answer and the reference answers: unlike F1
it minds the order of words, for answers of a sentence or more.

Range: [0, 1]. Scale: linear. Source: ROUGE-L, Lin, ACL 2004 workshop, eq. 2-4 with beta 1, on
SQuAD's normalised words.
"""

from collections.abc import Sequence

from dro_rl.evaluation.answers import normalise_answer
from dro_rl.records import Outcome
from dro_rl.reward import Reward


class RougeL(Reward):
    """F1 of LCS(answer, reference) over both lengths, the best over the reference answers."""

    needs = ("answer",)

    def score(self, outcomes: Sequence[Outcome]) -> list[float]:
        return [_best(o.answer or "", o.example.answers) for o in outcomes]


def _best(answer: str, references: Sequence[str]) -> float:
    return max((_rouge_l(answer, r) for r in references), default=0.0)


def _rouge_l(answer: str, reference: str) -> float:
    said, wanted = normalise_answer(answer).split(), normalise_answer(reference).split()
    longest = [0] * (len(wanted) + 1)  # of the words read so far and wanted[:j]
    for word in said:
        row = [0]
        for j, other in enumerate(wanted):
            row.append(longest[j] + 1 if word == other else max(longest[j + 1], row[j]))
        longest = row
    return 2 * longest[-1] / (len(said) + len(wanted)) if longest[-1] else 0.0
