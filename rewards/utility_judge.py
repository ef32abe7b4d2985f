"""An LLM says whether the selected documents suffice to answer the question.

Range: {0, 0.5, 1}: no, partly, yes. Scale: linear. Source: utility judgments by LLMs, Zhang et al.,
"Leveraging LLMs for Utility-Focused Annotation", arXiv 2504.05220; the prompt is our own, and one
call judges a whole selection, which is what the generator reads.

    reward: {use: rewards/utility_judge.py, url: "http://127.0.0.1:8000/v1", model: Qwen/Qwen3-8B}

The address is any that speaks OpenAI's protocol: vLLM, a gateway, a vendor.
"""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt

from dro_rl.errors import UserError
from dro_rl.records import Outcome
from dro_rl.remote import bearer_token, check_url, post_json
from dro_rl.reward import Reward

PROMPT = (
    "Below are passages and a question. Judge their utility: could somebody who knows nothing else "
    "give the reference answer from these passages alone?\n\n{passages}\n\nQuestion: {question}\n"
    "Reference answer: {answer}\n\nReply with one word: yes, partly or no."
)
GRADES = {"yes": 1.0, "partly": 0.5, "no": 0.0}


@dataclass
class UtilityJudge(Reward):
    """The judge's verdict on each selection; one of no document is 0 without being asked.

    url: of the API, without /chat/completions. model: its name there. key: the environment variable
    that holds the API key, where one is needed. tokens: room for a reply [tokens]; a judge that
    thinks aloud first needs more. timeout: of a call [s]. attempts: calls of one judgment, at most.
    concurrency: calls at a time.
    """

    url: str
    model: str
    key: str = "OPENAI_API_KEY"
    tokens: PositiveInt = 16
    timeout: PositiveFloat = 60.0
    attempts: PositiveInt = 4
    concurrency: Annotated[int, Field(ge=1, le=256)] = 8

    remote = True

    def __post_init__(self) -> None:
        check_url(self.url, "reward UtilityJudge: url")
        bearer_token(self.key)  # refuses a key where its variable's name should be

    def score(self, outcomes: Sequence[Outcome]) -> list[float]:
        with ThreadPoolExecutor(self.concurrency) as pool:
            return list(pool.map(self._judge, outcomes))

    def _judge(self, outcome: Outcome) -> float:
        if not outcome.documents:
            return 0.0
        reply = post_json(
            f"{self.url.rstrip('/')}/chat/completions",
            {
                "model": self.model,
                "messages": [{"role": "user", "content": _prompt(outcome)}],
                "temperature": 0,
                "max_tokens": self.tokens,
            },
            setting=f"reward UtilityJudge, example {outcome.example.id}",
            timeout=self.timeout,
            attempts=self.attempts,
            token_variable=self.key,
        )
        return _grade(reply, outcome.example.id)


def _prompt(outcome: Outcome) -> str:
    documents = [outcome.example.candidates[i] for i in outcome.documents]
    passages = "\n".join(f"[{i}] {d.title}: {d.text}" for i, d in enumerate(documents, 1))
    question, answer = outcome.example.question, outcome.example.answers[0]
    return PROMPT.format(passages=passages, question=question, answer=answer)


def _grade(reply: object, example: str) -> float:
    """The grade that the judge's text begins with, or else the last one that it names; what it
    thinks aloud in <think> is not read."""
    try:
        choice = reply["choices"][0]  # type: ignore[index]
        text, cut = str(choice["message"]["content"]), choice.get("finish_reason") == "length"
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise UserError(
            f"reward UtilityJudge, example {example}: the reply is none of a chat completion: "
            f"{str(reply)[:200]}"
        ) from error
    said = text.rpartition("</think>")[2].strip().lower()
    begins = re.match(r"\W*(yes|partly|no)\b", said)
    named = re.findall(r"\b(yes|partly|no)\b", said)
    if begins:
        return GRADES[begins[1]]
    if not named or cut:
        raise UserError(
            f"reward UtilityJudge, example {example}: the judge said {text[:200]!r}, not yes, "
            "partly or no: raise `tokens`, or take a model that follows instructions"
        )
    return GRADES[named[-1]]
