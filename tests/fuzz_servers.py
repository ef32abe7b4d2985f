"""What is fuzzed of what servers answer, and of what ours is asked."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from dro_rl import remote
from dro_rl.errors import UserError
from dro_rl.records import Document, Example, Outcome
from dro_rl.retrieval.http import ask
from dro_rl.reward import load_reward
from dro_rl.reward.checks import usable_scores
from dro_rl.reward.remote import RemoteReward
from dro_rl.reward.server import make_app
from dro_rl.sections.retrieval import HttpRetrieval
from tests.fuzzing import Target
from tests.strategies import broken, nearly

# --- what servers answer --------------------------------------------------------------------------

_EXAMPLE = Example("q1", "Where?", ("Lyon",), (Document("Lyon", "A city.", True),) * 2)
_OUTCOMES = [
    Outcome(_EXAMPLE, (0, 1), -2.5, 3, "Lyon"),
    Outcome(_EXAMPLE, (), -math.inf, 3, ""),
]
_URL = "http://127.0.0.1:9/score"
_ABOUT = {"scale": "log", "needs": ["answer"], "scores": []}
_REPLIES: dict[str, list[Any]] = {
    "about": [_ABOUT],
    "scores": [_ABOUT | {"scores": [[0.5, "-inf"]]}],
    "judge": [{"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]}],
    "passages": [{"results": [[{"title": "Lyon", "text": "A city.", "score": 1.5}]]}],
}


@st.composite
def _reply(draw: st.DrawFn) -> tuple[str, int, bytes]:
    asked = draw(st.sampled_from([*_REPLIES]))
    status = draw(st.sampled_from([200] * 8 + [204, 302, 404, 500]))
    content = json.dumps(draw(nearly(_REPLIES[asked]))).encode()
    return asked, status, draw(broken(content) | st.just(content) | st.binary(max_size=40))


@contextmanager
def _answering(status: int, content: bytes) -> Iterator[None]:
    original = remote._post_once
    remote._post_once = lambda *_: (status, content)
    try:
        yield
    finally:
        remote._post_once = original


@cache
def _judge() -> Any:
    from dro_rl.sections.reward import RewardSection

    section = {"use": "rewards/utility_judge.py", "url": _URL, "model": "m", "attempts": 1}
    return load_reward(RewardSection.model_validate(section))


def _run_reply(folder: Path, case: tuple[str, int, bytes]) -> None:
    asked, status, content = case
    settings = HttpRetrieval.model_validate({"kind": "http", "url": _URL})
    client = RemoteReward.__new__(RemoteReward)  # it asks when it is made
    client.url, client.timeout, client.attempts = _URL, 1, 1
    client.scale, client.needs = "log", ("answer",)
    with _answering(status, content):
        if asked == "about":
            RemoteReward(_URL, attempts=1)
        elif asked == "scores":
            assert len(usable_scores(client, _OUTCOMES)) == 2
        elif asked == "judge":
            assert _judge().score(_OUTCOMES)[0] in (0, 0.5, 1)
        else:
            monkey = remote.time.sleep
            remote.time.sleep = lambda _: None  # its attempts are its own affair
            try:
                (ranking,) = ask(settings, ["Where?"], 2)
            finally:
                remote.time.sleep = monkey
            assert all(math.isfinite(score) for _, score in ranking)


# --- what a reward server is asked ----------------------------------------------------------------

_QUESTION = {
    "id": "q1",
    "question": "Where?",
    "answers": ["Lyon"],
    "parts": [],
    "metric": "squad",
    "candidates": [{"title": "Lyon", "text": "A city.", "is_gold": True}],
    "scores": [1.0],
    "selections": [{"documents": [0], "log_likelihood": -1.0, "answer_tokens": 1, "answer": "a"}],
}


@st.composite
def _request(draw: st.DrawFn) -> bytes:
    content = json.dumps(draw(nearly([{"questions": [_QUESTION]}]))).encode()
    return draw(broken(content) | st.just(content) | st.binary(max_size=40))


@cache
def _client() -> Any:
    from fastapi.testclient import TestClient

    return TestClient(make_app(load_reward("rewards/f1.py")))  # it raises what the app does


def _run_request(folder: Path, body: bytes) -> None:
    reply = _client().post("/score", content=body)
    assert reply.status_code in (200, 400, 422), reply.text
    assert "Traceback" not in reply.text and json.loads(reply.content)
    if reply.status_code != 200:
        raise UserError(reply.text)


TARGETS = [
    Target("replies of servers", _reply(), _run_reply),
    Target("requests to a reward server", _request(), _run_request, cases_in_ci=100),
]
