"""How good the selected documents are: do they hold the answer, and are they the gold ones?"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from dro_rl.records import Document, Example

_TOKEN = re.compile(r"[^\W_]+|[^\w\s]|_")


def answer_recall(example: Example, documents: Sequence[int], k: int) -> float:
    """Share of the answer that the first k selected documents hold, in [0, 1].

    For an example with `parts`, the share of parts that at least one of these documents holds;
    otherwise 1 if any of them holds any of the answers, else 0. An answer that is not a span of
    text ("yes") is rarely held by any document, so the best possible value can be below 1.

    Args:
        documents: 0-based indices into the example's candidates, in the order selected.
    """
    texts = [_tokens(_full_text(example.candidates[i])) for i in documents[:k]]

    def held(phrase: str) -> bool:
        return any(_contains(text, _tokens(phrase)) for text in texts)

    if example.parts:
        return sum(map(held, example.parts)) / len(example.parts)
    return float(any(map(held, example.answers)))


def gold_recall(example: Example, documents: Sequence[int]) -> float | None:
    """Share of the example's gold candidates that are selected, in [0, 1].

    None where no candidate is gold: there is nothing to find, and a mean has to leave it out.

    Args:
        documents: 0-based indices into the example's candidates.
    """
    gold = {i for i, document in enumerate(example.candidates) if document.is_gold}
    return len(gold.intersection(documents)) / len(gold) if gold else None


def _full_text(document: Document) -> str:
    return f"{document.title}\n{document.text}"


def _tokens(text: str) -> list[str]:
    """Lower-cased words and single punctuation marks, as in DPR's has_answer (Karpukhin et al.,
    EMNLP 2020, arXiv 2004.04906). NFC instead of its NFD, since `\\w` does not match the
    combining marks that NFD splits off; the matches are the same."""
    return _TOKEN.findall(unicodedata.normalize("NFC", text).lower())


def _contains(text: list[str], phrase: list[str]) -> bool:
    size = len(phrase)
    return size > 0 and any(text[i : i + size] == phrase for i in range(len(text) - size + 1))
