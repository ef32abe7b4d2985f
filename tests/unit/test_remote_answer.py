"""The reward of a hosted LLM, against local servers of OpenAI's protocol, good and bad."""

from __future__ import annotations

import json
import time

import pytest

from dro_rl import remote
from dro_rl.errors import UserError
from dro_rl.records import Document, Example, Outcome
from dro_rl.reward import load_reward
from dro_rl.sections.reward import RewardSection
from tests.servers import serving

pytestmark = pytest.mark.unit

EXAMPLE = Example(
    "q17",
    "Where was Kovac born?",
    ("Lyon", "the city of Lyon"),
    (Document("Kovac", "Born in Lyon."), Document("Silva", "Born in Oslo.")),
)


def scores(url: str, *selections: tuple[int, ...], **settings) -> list[float]:
    given = {"use": "rewards/remote_answer.py", "url": f"{url}/v1", "model": "m", **settings}
    reward = load_reward(RewardSection.model_validate(given))
    return reward.score([Outcome(EXAMPLE, documents) for documents in selections])


def answering(body, headers):
    said = "Lyon" if "Born in Lyon" in body["messages"][0]["content"] else "in Oslo or Lyon"
    return 200, json.dumps({"choices": [{"message": {"content": said}}]}).encode()


def echoing(body, headers):
    """Words as tokens, each log-probability the number of documents less its length."""
    text, offsets, tokens = body["prompt"], [], []
    for i, letter in enumerate(text):
        if i == 0 or letter == " ":
            offsets.append(i)
            tokens.append("")
        tokens[-1] += letter
    logprobs = [None, *(-float(len(t)) for t in tokens[1:]), -100.0]
    told = {"text_offset": [*offsets, len(text)], "token_logprobs": logprobs}
    assert body["echo"] and body["logprobs"] == 1 and body["max_tokens"] == 1
    return 200, json.dumps({"choices": [{"text": text, "logprobs": told}]}).encode()


def test_an_answer_is_scored_as_the_generators_own():
    with serving(answering) as url:
        assert scores(url, (0,), (1,), (1, 0), score_by="exact_match") == [1, 0, 1]
        assert scores(url, (0,), (1,)) == [1, pytest.approx(2 / 5)]  # of 4 words and of 1


def test_a_likelihood_is_that_of_the_answers_tokens_alone():
    with serving(echoing) as url:
        assert scores(url, (0,), (0, 1), score_by="likelihood") == [-5.0, -5.0]  # " Lyon"


def beginning(body, headers):
    """As vLLM tells of a tokenizer that begins sequences with a token of its own."""
    status, reply = echoing(body, headers)
    said = json.loads(reply)
    told, begin = said["choices"][0]["logprobs"], len("<|begin_of_text|>")
    told["text_offset"] = [0, *(at + begin for at in told["text_offset"])]
    told["token_logprobs"] = [None, -7.0, *told["token_logprobs"][1:]]
    return status, json.dumps(said).encode()


def test_a_token_that_begins_the_sequence_moves_nothing():
    with serving(beginning) as url:
        assert scores(url, (0,), (0, 1), score_by="likelihood") == [-5.0, -5.0]


def test_its_scale_follows_from_what_it_scores_by():
    def scale(by: str) -> str:
        given = {"use": "rewards/remote_answer.py", "url": "http://h/v1", "model": "m"}
        return load_reward(RewardSection.model_validate({**given, "score_by": by})).scale

    assert (scale("f1"), scale("likelihood")) == ("linear", "log")


@pytest.mark.parametrize(
    ("reply", "by", "told"),
    [
        ({"choices": [{"text": "x"}]}, "likelihood", "has no log-probabilities of the prompt"),
        (
            {"choices": [{"logprobs": {"text_offset": [0], "token_logprobs": [None]}}]},
            "likelihood",
            "has no token that begins where the answer does",
        ),
        ({"choices": [{"text": "x"}]}, "f1", "is none of a chat completion"),
        ({"choices": [{"message": {"content": None}}]}, "f1", "has no answer: raise tokens"),
        (
            {"choices": [{"message": {"content": "<think>Wh"}, "finish_reason": "length"}]},
            "exact_match",
            "has no answer: raise tokens",
        ),
        ({"error": "overloaded"}, "f1", "has no choices"),
    ],
)
def test_a_reply_that_says_nothing_usable_is_quoted(reply, by, told):
    with (
        serving(lambda body, headers: (200, json.dumps(reply).encode())) as url,
        pytest.raises(UserError, match=f"RemoteAnswer, example q17: .*{told}"),
    ):
        scores(url, (0,), score_by=by)


def test_a_server_that_takes_too_long_is_named(monkeypatch):
    pause = time.sleep
    monkeypatch.setattr(remote.time, "sleep", lambda seconds: None)

    def slow(body, headers):
        pause(0.5)
        return 200, b"{}"

    with (
        serving(slow) as url,
        pytest.raises(UserError, match=r"example q17: http://.* in 2 tries: no reply within 0.1 s"),
    ):
        scores(url, (0,), timeout=0.1, attempts=2)
