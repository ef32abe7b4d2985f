"""Exact match and F1 of answers, as the scripts of SQuAD v1.1 and KILT compute them.

Sources: Rajpurkar et al., EMNLP 2016 (arXiv 1606.05250), evaluate-v1.1.py; Petroni et al., NAACL
2021 (arXiv 2009.02252), kilt/eval_downstream.py. NQ-open's and MuSiQue's give the same. Those of
HotpotQA (hotpot_evaluate_v1.py) and 2WikiMultihopQA (2wikimultihop_evaluate_v1.1.py) differ in one
thing, that F1 is 0 for a "yes", "no" or "noanswer" beside anything else: the metric "hotpotqa".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from dro_rl.normalise import normalise_answer
from dro_rl.records import Metric

_CLOSED = ("yes", "no", "noanswer")


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1.0 if the prediction equals any of the answers once normalised, else 0.0."""
    return float(normalise_answer(prediction) in map(normalise_answer, answers))


def f1(
    prediction: str, answers: Sequence[str], metric: Metric = "squad", beta: float = 1.0
) -> float:
    """The best F1 over the answers, in [0, 1]; 0 without answers.

    F1 is the harmonic mean of precision and recall of the prediction's normalised tokens, each
    counted as often as it occurs. It is 0 where no token is shared, so also where both are empty.
    `metric` is that of the example. With another `beta` it is F_beta, in which recall counts beta
    times as much as precision (van Rijsbergen, Information Retrieval, 1979).
    """
    return max((_f1(prediction, answer, metric, beta) for answer in answers), default=0.0)


def _f1(prediction: str, answer: str, metric: Metric, beta: float) -> float:
    plain, reference = normalise_answer(prediction), normalise_answer(answer)
    if metric == "hotpotqa" and plain != reference and (plain in _CLOSED or reference in _CLOSED):
        return 0.0
    predicted, wanted = plain.split(), reference.split()
    shared = (Counter(predicted) & Counter(wanted)).total()
    # (1 + b^2) P R / (b^2 P + R) with P = shared / |predicted| and R = shared / |wanted|
    square = beta**2
    return (1 + square) * shared / (square * len(wanted) + len(predicted)) if shared else 0.0
