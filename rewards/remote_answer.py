"""What a hosted LLM makes of a selection: its answer's exact match or F1, or the likelihood that
it gives the reference answer. The selector learns; the LLM behind the address stays as it is.

    reward: {use: rewards/remote_answer.py, url: "http://127.0.0.1:8000/v1", model: Qwen/Qwen3-8B,
             score_by: likelihood}

The address is any that speaks OpenAI's protocol. The likelihood asks /completions to echo the
prompt with log-probabilities (`echo`, `logprobs`), which vLLM's server does and vendors mostly do
not.

Range: [0, 1], of the likelihood (-inf, 0] nats. Scale: linear, of the likelihood log.
Source: SQuAD, Rajpurkar et al., arXiv 1606.05250; Shi et al., arXiv 2505.03075, eq. 8.
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from dro_rl.errors import UserError
from dro_rl.evaluation.answers import exact_match, f1
from dro_rl.prompts import ANSWER, PLAIN
from dro_rl.records import Outcome
from dro_rl.remote import bearer_token, check_url, post_json
from dro_rl.reward import Reward


@dataclass
class RemoteAnswer(Reward):
    """How good the LLM's answer from the selected documents is.

    url: of the API, without /chat/completions. model: its name there. score_by: f1 or exact_match
    of the greedy answer, or the likelihood, log p(y|x,d_z) summed over the tokens of the first
    reference answer [nats], without an end of sequence. key: the environment variable that holds
    the API key, where one is needed. tokens: room for an answer [tokens]. timeout: of a call [s].
    attempts: calls of one selection, at most. concurrency: calls at a time.
    """

    url: str
    model: str
    score_by: Literal["f1", "exact_match", "likelihood"] = "f1"
    key: str = "OPENAI_API_KEY"
    tokens: PositiveInt = 32
    timeout: PositiveFloat = 60.0
    attempts: PositiveInt = 4
    concurrency: Annotated[int, Field(ge=1, le=256)] = 8

    remote = True

    def __post_init__(self) -> None:
        check_url(self.url, "reward RemoteAnswer: url")
        bearer_token(self.key)  # refuses a key where its variable's name should be
        self.scale = "log" if self.score_by == "likelihood" else "linear"

    def score(self, outcomes: Sequence[Outcome]) -> list[float]:
        one = self._likelihood if self.score_by == "likelihood" else self._overlap
        with ThreadPoolExecutor(self.concurrency) as pool:
            return list(pool.map(one, outcomes))

    def _overlap(self, outcome: Outcome) -> float:
        said = self._ask(
            outcome,
            "chat/completions",
            {
                "messages": [{"role": "user", "content": _prompt(ANSWER, outcome)}],
                "max_tokens": self.tokens,
            },
        )
        example = outcome.example
        try:
            answer, ended = said["message"]["content"], said.get("finish_reason")
        except (AttributeError, KeyError, TypeError) as error:
            raise self._unusable(outcome, "is none of a chat completion", said) from error
        if not isinstance(answer, str) or (ended == "length" and "<think>" in answer):
            raise self._unusable(
                outcome,
                "has no answer: raise tokens, or turn the model's thinking off at its server",
                said,
            )
        if self.score_by == "exact_match":
            return exact_match(answer, example.answers)
        return f1(answer, example.answers, example.metric)

    def _likelihood(self, outcome: Outcome) -> float:
        prompt = _prompt(PLAIN["answer"], outcome)
        whole = f"{prompt} {outcome.example.answers[0]}"
        # One token is sampled, for servers that refuse to sample none; it is not counted.
        asked = {"prompt": whole, "max_tokens": 1, "echo": True, "logprobs": 1}
        said = self._ask(outcome, "completions", asked)
        try:
            told = said["logprobs"]
            # A token that begins sequences has an offset too, and moves all others by its length.
            # The last entry is the sampled token, which begins where the text ends.
            moved = told["text_offset"][-1] - len(whole)
            places = [at - moved for at in told["text_offset"]]
            pairs = list(zip(places, told["token_logprobs"], strict=True))
            inside = [p for at, p in pairs if len(prompt) <= at < len(whole)]
            total = sum(map(float, inside))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise self._unusable(
                outcome, "has no log-probabilities of the prompt: take score_by: f1", said
            ) from error
        if len(prompt) not in [at for at, _ in pairs] or not math.isfinite(total):
            raise self._unusable(
                outcome, "has no token that begins where the answer does: take score_by: f1", said
            )
        return total

    def _ask(self, outcome: Outcome, path: str, asked: dict[str, Any]) -> Any:
        """The first choice of the reply."""
        reply = post_json(
            f"{self.url.rstrip('/')}/{path}",
            {"model": self.model, "temperature": 0, **asked},
            setting=f"reward RemoteAnswer, example {outcome.example.id}",
            timeout=self.timeout,
            attempts=self.attempts,
            token_variable=self.key,
        )
        try:
            return reply["choices"][0]
        except (KeyError, IndexError, TypeError) as error:
            raise self._unusable(outcome, "has no choices", reply) from error

    def _unusable(self, outcome: Outcome, what: str, reply: object) -> UserError:
        return UserError(
            f"reward RemoteAnswer, example {outcome.example.id}: the reply of {self.url} {what} "
            f"({str(reply)[:200]})"
        )


def _prompt(template: str, outcome: Outcome) -> str:
    documents = [outcome.example.candidates[i] for i in outcome.documents]
    rows = [f"[{i}] {d.title}: {d.text}" for i, d in enumerate(documents, 1)]
    return template.format(documents="\n".join(rows), question=outcome.example.question)
