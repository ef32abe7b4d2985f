"""1 where a selected document states the answer, else 0: distant supervision for a selector without
a generator, and without labels of which documents support the answer.

Range: {0, 1}. Scale: linear. Source: distant supervision of DrQA, Chen et al., ACL 2017, arXiv
1704.00051, sec. 4.3, on SQuAD's normalised words. An answer that is no span of text ("yes") earns
nothing: such questions teach nothing, and their selections stay as they are.
"""

from collections.abc import Sequence

from dro_rl.evaluation.answers import normalise_answer
from dro_rl.records import Outcome
from dro_rl.reward import Reward

_CLOSED = ("yes", "no", "noanswer")


class AnswerInDocuments(Reward):
    """Whether any reference answer stands in a selected document, title or text, word for word
    once both are normalised."""

    def score(self, outcomes: Sequence[Outcome]) -> list[float]:
        return [float(_is_stated(o)) for o in outcomes]


def _is_stated(outcome: Outcome) -> bool:
    answers = map(normalise_answer, outcome.example.answers)
    wanted = [f" {answer} " for answer in answers if answer not in ("", *_CLOSED)]
    chosen = [outcome.example.candidates[i] for i in outcome.documents]
    texts = [f" {normalise_answer(f'{d.title} {d.text}')} " for d in chosen]
    return any(answer in text for answer in wanted for text in texts)
