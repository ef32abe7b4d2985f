"""Exact match and F1 of answers, as the scripts of SQuAD v1.1 and KILT compute them.

Sources: Rajpurkar et al., EMNLP 2016 (arXiv 1606.05250), evaluate-v1.1.py; Petroni et al., NAACL
2021 (arXiv 2009.02252), kilt/eval_downstream.py. HotpotQA's script differs in one thing, that F1
is 0 for a "yes", "no" or "noanswer" beside anything else; it is not followed here.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_DELETE_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLE = re.compile(r"\b(a|an|the)\b")


def normalise_answer(text: str) -> str:
    """Lower-case; drop ASCII punctuation, then the articles a, an, the; collapse white space.

    Punctuation goes without leaving a space, and before articles do: "A.B. the-end" becomes
    "ab theend". Other scripts' punctuation and accents stay.
    """
    plain = text.lower().translate(_DELETE_PUNCTUATION)
    return " ".join(_ARTICLE.sub(" ", plain).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1.0 if the prediction equals any of the answers once normalised, else 0.0."""
    return float(normalise_answer(prediction) in map(normalise_answer, answers))


def f1(prediction: str, answers: Sequence[str]) -> float:
    """The best F1 over the answers, in [0, 1]; 0 without answers.

    F1 is the harmonic mean of precision and recall of the prediction's normalised tokens, each
    counted as often as it occurs. It is 0 where no token is shared, so also where both are empty.
    """
    return max((_f1(prediction, answer) for answer in answers), default=0.0)


def _f1(prediction: str, answer: str) -> float:
    predicted, wanted = normalise_answer(prediction).split(), normalise_answer(answer).split()
    shared = (Counter(predicted) & Counter(wanted)).total()
    # 2 P R / (P + R) with P = shared / |predicted| and R = shared / |wanted|
    return 2 * shared / (len(predicted) + len(wanted)) if shared else 0.0
