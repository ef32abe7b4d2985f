"""When two texts count as the same: answers as the official scripts see them, and questions."""

from __future__ import annotations

import re
import string
import unicodedata

_DELETE_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLE = re.compile(r"\b(a|an|the)\b")


def normalise_answer(text: str) -> str:
    """Lower-case; drop ASCII punctuation, then the articles a, an, the; collapse white space.

    Punctuation goes without leaving a space, and before articles do: "A.B. the-end" becomes
    "ab theend". Other scripts' punctuation and accents stay. So do the scripts of SQuAD v1.1,
    HotpotQA, 2WikiMultihopQA, MuSiQue, NQ-open and KILT.
    """
    plain = text.lower().translate(_DELETE_PUNCTUATION)
    return " ".join(_ARTICLE.sub(" ", plain).split())


def normalise_question(text: str) -> str:
    """Without regard to case, white space, Unicode form and what ends the sentence."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(folded.split()).rstrip(" ?!.")
