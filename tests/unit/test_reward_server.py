"""A reward over HTTP: what goes over the wire, who may ask, and servers that misbehave."""

import json
import math
import re
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import uvicorn
from fastapi.testclient import TestClient

from dro_rl import remote
from dro_rl.errors import UserError
from dro_rl.listening import listen
from dro_rl.records import Document, Example, Outcome
from dro_rl.reward import Reward, load_reward, server
from dro_rl.reward.checks import checked_scores
from dro_rl.reward.server import make_app
from dro_rl.sections.reward import RewardSection
from tests.servers import serving

pytestmark = pytest.mark.unit

CANDIDATES = (Document("Lyon", "A city.", True), Document("Oslo", "Another <|end|> ✓."))
EXAMPLES = [
    Example("q1", "Where?", ("Lyon", "Lyons"), CANDIDATES, ("Ly", "on"), (2.5, -1.0), "hotpotqa"),
    Example("q2", "Who?", ("Kovac",), CANDIDATES),
]
OUTCOMES = [
    Outcome(EXAMPLES[0], (0, 1), -2.5, 3, "Lyon"),
    Outcome(EXAMPLES[0], (1,), -math.inf, 3, ""),
    Outcome(EXAMPLES[1], ()),
]


class Spy(Reward):
    """Remembers what it saw; log 0 for the second."""

    scale = "log"
    needs = ("likelihood", "answer")

    def __init__(self) -> None:
        self.seen: list[Outcome] = []

    def score(self, outcomes):
        self.seen += outcomes
        return [-math.inf if o.documents == (1,) else len(o.documents) / 3 for o in outcomes]


@pytest.fixture
def serve():
    """Runs an app on a free port; gives the address."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def run(reward: Reward, token: str | None = None) -> str:
        listening = listen("127.0.0.1", 0)
        server = uvicorn.Server(uvicorn.Config(make_app(reward, token), log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        running.append((server, thread))
        return f"http://127.0.0.1:{listening.getsockname()[1]}/score"

    yield run
    for one, thread in running:
        one.should_exit = True
        thread.join(10)


def address(url: str, **settings) -> RewardSection:
    return RewardSection.model_validate({"use": url, **settings})


# --- there and back -----------------------------------------------------------------------------


def test_a_served_reward_sees_the_same_and_says_the_same(serve):
    spy = Spy()
    client = load_reward(serve(spy))
    assert (client.scale, client.needs) == ("log", ("likelihood", "answer"))
    assert client.remote and spy.seen == []  # nothing was scored to know that
    assert checked_scores(client, OUTCOMES) == [2 / 3, -math.inf, 0.0]
    assert spy.seen == OUTCOMES


def test_all_questions_go_in_one_call(serve):
    calls = []

    class Counts(Reward):
        def score(self, outcomes):
            calls.append(len(outcomes))
            return [1.0] * len(outcomes)

    load_reward(serve(Counts())).score(OUTCOMES)
    assert calls == [3]


def test_an_address_may_be_a_term_of_a_sum(serve):
    from dro_rl.sections.reward import WeightedReward

    served = WeightedReward(use=serve(Spy()), weight=3.0)
    other = WeightedReward(use="rewards/length_penalty.py")
    total = load_reward([served, other])
    assert total.remote and total.needs == ("likelihood", "answer")
    assert total.score(OUTCOMES) == pytest.approx([2 - 0.2, -math.inf, 0])


def test_a_token_is_asked_for_where_one_is_set(serve, monkeypatch):
    url = serve(Spy(), token="secret")
    monkeypatch.delenv("DRO_RL_TOKEN", raising=False)
    with pytest.raises(UserError, match="answered 401: .*set DRO_RL_TOKEN"):
        load_reward(url)
    monkeypatch.setenv("DRO_RL_TOKEN", "secret")
    assert load_reward(url).score(OUTCOMES[:1]) == [pytest.approx(2 / 3)]


def test_who_asks_and_how_much_is_looked_at_before_the_body_is_read(monkeypatch):
    client = TestClient(make_app(Spy(), "secret"))
    assert client.post("/score", content=b"{").status_code == 401
    assert client.get("/openapi.json").status_code == 404
    monkeypatch.setattr(server, "_LARGEST_BODY", 10)
    headers = {"Authorization": "Bearer secret"}
    assert client.post("/score", content=b"x" * 11, headers=headers).status_code == 413
    assert client.post("/score", content=iter([b"x"]), headers=headers).status_code == 413


def test_health_tells_what_runs_without_a_token():
    client = TestClient(make_app(Spy(), "secret"))
    assert client.get("/health").json() == {
        "status": "ok",
        "reward": "Spy",
        "scale": "log",
        "needs": ["likelihood", "answer"],
    }


QUESTION = {
    "id": "q1",
    "question": "Where?",
    "answers": ["Lyon"],
    "candidates": [{"text": "A city."}],
    "selections": [{"documents": [0], "answer": "Lyon"}],
}


def test_a_request_may_leave_out_what_the_reward_does_not_need():
    client = TestClient(make_app(load_reward("rewards/f1.py")))
    reply = client.post("/score", json={"questions": [QUESTION]})
    assert reply.json() == {"scale": "linear", "needs": ["answer"], "scores": [[1.0]]}


def test_the_request_in_the_docs_gets_the_reply_in_the_docs():
    text = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text()
    request, reply = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    client = TestClient(make_app(load_reward("rewards/f1.py")))
    assert client.post("/score", json=json.loads(request)).json() == json.loads(reply)


@pytest.mark.parametrize(
    ("change", "status", "told"),
    [
        ({"selections": [{"documents": [1]}]}, 400, "question q1: documents [1] are not all among"),
        ({"selections": [{"documents": [-1]}]}, 422, "greater than or equal to 0"),
        ({"answers": "Lyon"}, 422, "valid array"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(change, status, told):
    client = TestClient(make_app(load_reward("rewards/f1.py")))
    reply = client.post("/score", json={"questions": [{**QUESTION, **change}]})
    assert reply.status_code == status and told in reply.text


class Broken(Reward):
    def __init__(self, value):
        self.value = value

    def score(self, outcomes):
        if isinstance(self.value, Exception):
            raise self.value
        return [self.value] * len(outcomes)


def test_a_served_reward_that_returns_nonsense_is_named_to_the_caller(serve):
    client = load_reward(serve(Broken(math.nan)))
    with pytest.raises(UserError, match="answered 400: .*reward Broken, example q1 .*nan"):
        client.score(OUTCOMES)


def test_a_served_reward_that_raises_shows_its_traceback_where_it_runs(serve, capfd):
    client = load_reward(address(serve(Broken(LookupError("too picky"))), attempts=1))
    with pytest.raises(UserError, match="answered 500: .*the reward raised LookupError: too picky"):
        client.score(OUTCOMES)
    assert "in score" in capfd.readouterr().err


def test_a_port_that_is_taken():
    taken = listen("127.0.0.1", 0)
    port = taken.getsockname()[1]
    with pytest.raises(UserError, match=f"127.0.0.1:{port}: .*--port"):
        listen("127.0.0.1", port)
    taken.close()


# --- servers of others --------------------------------------------------------------------------

ABOUT = {"scale": "linear", "needs": [], "scores": []}


@pytest.fixture
def other(monkeypatch):
    """A server that answers a request without questions rightly, and others with `.reply`."""
    wait = time.sleep
    monkeypatch.setattr(remote.time, "sleep", lambda s: wait(s / 100))

    served = SimpleNamespace(about=(200, ABOUT, 0), reply=(200, ABOUT, 0))

    def answer(body, headers):
        status, content, delay = served.reply if body["questions"] else served.about
        wait(delay)
        return status, content if isinstance(content, bytes) else json.dumps(content).encode()

    with serving(answer) as served.url:
        yield served


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        ((200, ABOUT | {"scores": [[1.0, 1.0]]}, 0), "must be 2 lists, one a question, and it"),
        ((200, ABOUT | {"scores": [[1.0], [1.0]]}, 0), "example q1: scores must be 2 numbers"),
        ((200, ABOUT | {"scores": [[1, 2], [None]]}, 0), "example q2 .*must be a finite number"),
        ((200, ABOUT | {"scores": [[1, math.nan], [1]]}, 0), r"example q1 \(selection \[2\]\)"),
        ((200, ABOUT | {"scores": [[1, "high"], [1]]}, 0), "must be a finite number.*high"),
        ((200, ABOUT | {"scores": [[1, -1], [1]]}, 0), "example q1 .*must not be negative"),
        ((200, ABOUT | {"scores": [[1, "-inf"], [1]]}, 0), "example q1 .*not a finite number"),
        ((200, {"score": 1}, 0), "scores must be 2 lists"),
        ((200, [1, 1, 1], 0), "must be an object with scale, needs and scores"),
        ((200, b"<html>", 0), "its reply is not JSON: <html>"),
        ((500, b"boom", 0), "it answered 500: boom"),
        ((200, ABOUT, 1), "no reply within 0.2 s"),
    ],
)
def test_a_reply_that_is_no_use_names_the_address_and_the_item(other, reply, told):
    hangs = reply[-1] > 0
    client = load_reward(address(other.url, timeout=0.2 if hangs else 20, attempts=2))
    other.reply = reply
    with pytest.raises(UserError, match=told):
        checked_scores(client, OUTCOMES)


@pytest.mark.parametrize(
    ("about", "told"),
    [
        ({"scale": "ln", "needs": []}, "its scale is 'ln', neither"),
        ({"scale": "log", "needs": ["answers"]}, "its needs are"),
        ({"status": "ok"}, "its scale is None"),
    ],
)
def test_a_server_of_something_else_is_refused_at_the_start(other, about, told):
    other.about = (200, about, 0)
    with pytest.raises(UserError, match=f"reward {other.url}: not the reply.*{told}"):
        load_reward(other.url)


@pytest.mark.parametrize(
    ("settings", "told"),
    [({"beta": 2}, "unknown setting 'beta'"), ({"timeout": 0}, "timeout: Input should be")],
)
def test_an_address_has_settings_of_its_own(other, settings, told):
    with pytest.raises(UserError, match=f"reward {other.url}: .*{told}"):
        load_reward(address(other.url, **settings))


def test_nobody_at_the_address(other):
    with serving(lambda body, headers: (200, b"")) as gone:
        pass
    with pytest.raises(UserError, match=f"reward: {gone} gave no usable reply"):
        load_reward(address(gone, attempts=2))


def test_an_address_that_is_none():
    with pytest.raises(UserError, match="must begin with http"):
        load_reward("ftp://host/score")
