"""Workers that are lost, late or slow, on a Ray that only keeps account of calls."""

import time
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import exceptions as ray_errors

from dro_rl.cluster.host import Pulse
from dro_rl.cluster.placement import Room
from dro_rl.cluster.ray_results import Lost, WorkerLost, result_of
from dro_rl.cluster.supervision import RayTeam
from dro_rl.errors import UserError
from dro_rl.recipe import POLICIES
from dro_rl.sections.process import ClusterSection
from dro_rl.shared_base import Part
from dro_rl.teams import Teams

pytestmark = pytest.mark.unit
NOBODYS = ray_errors.ObjectLostError("0" * 56, None, "")
DIED = ray_errors.RayActorError(error_msg="The actor died.\nThe actor is dead because of a test.")


class Ref:
    """What a call ends with, if it does."""

    def __init__(self, value: Any = None, ended: bool = True) -> None:
        self.value, self.ended = value, ended


class Later:
    """Ends at a time."""

    def __init__(self, ends: float) -> None:
        self.value, self.ends = "ready", ends

    @property
    def ended(self) -> bool:
        return time.monotonic() >= self.ends


class Call:
    def __init__(self, answer):
        self.answer = answer

    def options(self, **options):
        return self

    def remote(self, *args):
        return self.answer(*args)


class Actor:
    """Of a host whose worker answers with what it is called with; an exception is raised."""

    def __init__(self, alive: bool = True, running: float = 0.0) -> None:
        self.alive, self.calls = alive, []
        self.make = Call(lambda *args: Ref())
        self.ready = Call(lambda: Ref("ready"))
        self.pulse = Call(lambda: Ref(Pulse(running, 0.0)))
        self.stack = Call(lambda: Ref("in long"))
        self.call = Call(self._call)

    def _call(self, method: str, args: tuple) -> Ref:
        self.calls.append((method, *args))
        if method == "long":
            return Ref(ended=False)
        return Ref(args[0] if self.alive else DIED)


def result(ref: Ref, timeout: float | None = None) -> Any:
    if not ref.ended:
        raise ray_errors.GetTimeoutError("not yet")
    if isinstance(ref.value, BaseException):
        raise ref.value
    return ref.value


def wait(refs, num_returns=1, timeout=None):
    ended = [ref for ref in refs if ref.ended][:num_returns]
    if not ended:
        time.sleep(timeout)
    return ended, [ref for ref in refs if ref not in ended]


@pytest.fixture(autouse=True)
def accounts(monkeypatch) -> list[Actor]:
    """In place of Ray; the actors that were killed."""
    killed = []
    for name, fake in (("put", lambda x: x), ("wait", wait), ("get", result)):
        monkeypatch.setattr(ray, name, fake)
    monkeypatch.setattr(ray, "kill", killed.append)
    return killed


def own_error(cause: Exception) -> ray_errors.RayTaskError:
    return ray_errors.RayTaskError("call", "Traceback ...", cause, "worker", 1, "1.2.3.4")


def team_of(*actors: Actor, worker=lambda number: (str, ()), **settings):
    actors_left = iter(actors)
    return RayTeam(
        "engine",
        1,
        lambda number: next(actors_left),
        worker,
        ClusterSection(mode="ray", **settings),
        stateful=False,
        say=lambda line: None,
        stacks=None,
    )


def given_lost_weights() -> tuple[RayTeam, Actor]:
    """A team that has lost its worker, and the worker in its place, whose weights are gone."""
    first, second = Actor(), Actor()
    team = team_of(first, second)
    team.ready()
    team.on_return("load_weights", (own_error(NOBODYS),), anew=True)
    first.alive = False
    with pytest.raises(WorkerLost, match="an argument is lost"):
        team.map("answer", [(1,)], lambda i: None)
    with pytest.raises(WorkerLost):  # and so it stays
        team.map("answer", [(1,)], lambda i: None)
    return team, second


def test_weights_that_are_gone_do_not_keep_a_worker_from_coming_back_with_new_ones():
    team, worker = given_lost_weights()
    team.on_return("load_weights", ("new",), anew=True)
    assert team.map("answer", [(1,)], lambda i: None) == [1]
    assert worker.calls[-2:] == [("load_weights", "new"), ("answer", 1)]


def test_learners_that_start_again_free_the_others_of_weights_that_are_gone():
    team, _ = given_lost_weights()
    restarts = list[int]()
    process: Any = SimpleNamespace(ready=list, forget=list, restart=lambda: restarts.append(1))
    engines, learners = ({p: Part(t, p) for p in POLICIES} for t in (team, process))
    recipe: Any = None  # which nothing here depends on
    Teams(recipe, engines, Part(process, "reward"), learners).restart_learners()
    assert restarts == [1]  # of one process, that holds both
    assert team.map("answer", [(1,)], lambda i: None) == [1]


def test_a_call_that_works_for_too_long_ends_the_run_at_once(accounts):
    team = team_of(Actor(running=9.0), call_timeout=0.2)
    team.ready()
    with pytest.raises(UserError, match=r"(?s)engine: long has run for 9 s.*call_timeout.*in long"):
        team.map("long", [(1,)], lambda i: None)
    assert accounts == []  # nobody was to do it again


def test_a_start_is_late_by_the_time_since_its_arguments_were_there():
    def worker(number):
        time.sleep(0.3)  # there is no room yet
        return str, ()

    actor = Actor()
    ends = time.monotonic() + 0.5
    actor.ready = Call(lambda: Later(ends))
    team = team_of(actor, worker=worker, start_timeout=0.4, heartbeat_timeout=0.2)
    assert team.ready() == ["ready"]


def test_a_start_that_has_ended_is_not_late():
    team = team_of(Actor(), start_timeout=0.05)
    time.sleep(0.2)  # nobody waited
    assert team.ready() == ["ready"]


def test_a_start_that_does_not_end_is_late():
    actor = Actor()
    actor.ready = Call(lambda: Ref(ended=False))
    with pytest.raises(UserError, match="start did not answer"):
        team_of(actor, start_timeout=0.05, heartbeat_timeout=0.1).ready()


def test_ranks_whose_first_does_not_answer_have_no_room(monkeypatch):
    freed = []
    monkeypatch.setattr("ray.util.placement_group", lambda need, strategy: Call(None))
    monkeypatch.setattr("ray.util.remove_placement_group", freed.append)
    monkeypatch.setattr(ray, "remote", lambda function: Call(lambda: Ref(ended=False)))
    monkeypatch.setattr(ray, "cluster_resources", dict)
    room = Room("learner", 2, 1.0, 0.1)
    room._group = SimpleNamespace(wait=lambda timeout: True)
    monkeypatch.setattr(room, "options", lambda rank: {})
    with pytest.raises(UserError, match="learner: no room for its 2 ranks"):
        room.place(0)
    assert len(freed) == 1


# --- what a call ended with -----------------------------------------------------------------------


def test_a_worker_that_rays_memory_monitor_killed_is_lost():
    told = "1 worker(s) were killed due to the node running low on memory.\nTop 10 memory users: x"
    with pytest.raises(Lost) as lost:
        result_of(Ref(ray_errors.OutOfMemoryError(told)), 1.0)
    assert str(lost.value) == told.splitlines()[0]


@pytest.mark.parametrize("error", [DIED, ray_errors.GetTimeoutError("late")], ids=repr)
def test_an_error_of_a_rewards_own_actors_is_its_own(error):
    with pytest.raises(ray_errors.RayTaskError):
        result_of(Ref(own_error(error)), 1.0)


def test_an_argument_that_is_gone_is_a_loss():
    with pytest.raises(WorkerLost, match="an argument is lost"):
        result_of(Ref(own_error(NOBODYS)), 1.0)
