"""Workers on a real embedded Ray: order, errors and time limits."""

import os
import time

import pytest

from dro_rl.cluster.processes import open_cluster
from dro_rl.errors import UserError
from dro_rl.sections.process import ClusterSection

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]


class Worker:
    """Does what it is told; Ray imports it in processes of its own."""

    def __init__(self, name: str) -> None:
        self.name, self.calls = name, 0

    def ready(self) -> dict[str, str | int]:
        return {"name": self.name, "pid": os.getpid()}

    def square(self, value: int, seconds: float = 0.0) -> tuple[int, int]:
        time.sleep(seconds)
        self.calls += 1
        return value * value, os.getpid()

    def count(self) -> int:
        return self.calls

    def refuse(self, value: int) -> None:
        raise UserError(f"give another value than {value}")

    def divide(self, value: int) -> float:
        return 1 / value

    def sleep(self, seconds: float) -> float:
        time.sleep(seconds)
        return seconds


class Stamped:
    """A call's argument that knows when the call was sent: it is written down only then."""

    def __init__(self, sent: float = 0.0) -> None:
        self.sent = sent

    def __reduce__(self):
        return Stamped, (time.monotonic(),)


class Replica:
    """A reward replica that takes its time, and keeps when each call was sent and answered."""

    def ready(self) -> None:
        return None

    def score(self, call: Stamped, seconds: float) -> tuple[float, float]:
        time.sleep(seconds)
        return call.sent, time.monotonic()


class Unmakeable:
    """A worker whose constructor fails as asked."""

    def __init__(self, kind: str) -> None:
        if kind == "user":
            raise UserError("model/: no such folder")
        raise LookupError("the constructor's own words")

    def ready(self) -> None:
        return None


class Slow:
    """A worker that takes its time to start."""

    def __init__(self) -> None:
        time.sleep(60)

    def ready(self) -> None:
        return None


@pytest.fixture(scope="module")
def cluster():
    section = ClusterSection(mode="ray", call_timeout=3, start_timeout=60, max_failures=0)
    with open_cluster(section, 4) as opened:
        yield opened


@pytest.fixture(scope="module")
def team(cluster):
    started = cluster.start("worker", Worker, 2, "w")
    started.ready()
    return started


def test_each_worker_has_a_process_of_its_own(team):
    pids = {about["pid"] for about in team.ready()}
    assert len(pids) == 2 and os.getpid() not in pids


def test_mapped_results_keep_their_order_however_fast_workers_are(team):
    before = sum(team.submit("count")())
    done = []
    calls = [(i, 1.5 if i == 0 else 0.01) for i in range(12)]
    results = team.map("square", calls, done.append)
    assert [value for value, _ in results] == [i * i for i in range(12)]
    assert sorted(done) == list(range(12)) and done[-1] == 0  # the slow call came back last
    assert len({pid for _, pid in results}) == 2
    slow = results[0][1]
    assert [pid for _, pid in results].count(slow) == 1  # the other worker took all the rest
    assert sum(team.submit("count")()) == before + 12


def test_slow_replicas_hold_back_what_is_sent_to_them(cluster):
    """Back-pressure: work waits here, where any replica may take it, and not in a queue of one."""
    team = cluster.start("reward service", Replica, 2)
    team.ready()
    calls = team.map("score", [(Stamped(), 0.3) for _ in range(6)], lambda i: None)
    team.stop()
    for sent, _ in calls:
        on_the_way = [other for other, answered in calls if other <= sent < answered]
        assert len(on_the_way) <= 2
    assert max(sent for sent, _ in calls) - min(sent for sent, _ in calls) > 0.5


def test_a_submitted_call_reaches_every_worker_and_does_not_wait(team):
    start = time.monotonic()
    wait = team.submit("sleep", 2.0)
    assert time.monotonic() - start < 1
    assert wait() == [2.0, 2.0]
    assert time.monotonic() - start < 3.5  # side by side


@pytest.mark.parametrize("how", ["submit", "map"])
def test_a_users_error_arrives_with_its_message_alone(team, how):
    with pytest.raises(UserError) as told:
        if how == "submit":
            team.submit("refuse", 7)()
        else:
            team.map("refuse", [(7,)], lambda i: None)
    assert str(told.value) == "give another value than 7"


@pytest.mark.parametrize("how", ["submit", "map"])
def test_another_error_keeps_its_type_and_the_workers_traceback(team, how):
    with pytest.raises(ZeroDivisionError) as told:
        if how == "submit":
            team.submit("divide", 0)()
        else:
            team.map("divide", [(4,), (0,)], lambda i: None)
    assert "return 1 / value" in str(told.value) and "in divide" in str(told.value)


def test_workers_go_on_after_an_error(team):
    with pytest.raises(ZeroDivisionError):
        team.submit("divide", 0)()
    assert team.submit("divide", 4)() == [0.25, 0.25]


@pytest.mark.parametrize("how", ["submit", "map"])
def test_a_call_that_takes_too_long_names_the_setting(cluster, how):
    team = cluster.start("sleepy worker", Worker, 1, "w")
    team.ready()
    start = time.monotonic()
    with pytest.raises(UserError) as told:
        if how == "submit":
            team.submit("sleep", 60.0)()
        else:
            team.map("sleep", [(60.0,)], lambda i: None)
    assert 2.5 < time.monotonic() - start < 20
    for words in ("sleepy worker", "sleep", "cluster.call_timeout", "in sleep"):
        assert words in str(told.value)


def test_a_user_error_of_a_constructor_arrives_as_one(cluster):
    with pytest.raises(UserError) as told:
        cluster.start("broken", Unmakeable, 1, "user").ready()
    assert str(told.value) == "model/: no such folder"


def test_another_error_of_a_constructor_keeps_its_traceback(cluster):
    with pytest.raises(LookupError, match="the constructor's own words") as told:
        cluster.start("broken", Unmakeable, 1, "other").ready()
    assert "in __init__" in str(told.value)


def test_a_worker_that_does_not_start_in_time_names_the_setting(cluster):
    cluster.section = cluster.section.model_copy(update={"start_timeout": 2.0})
    with pytest.raises(UserError, match="slow worker.*2 s.*cluster.start_timeout"):
        cluster.start("slow worker", Slow, 1).ready()
