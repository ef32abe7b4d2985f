"""Processes that die or hang, on a Ray cluster of three nodes of its own: work is done all the
same, and the results are those of an undisturbed run, bit for bit."""

import re
import time
from pathlib import Path

import pytest

from dro_rl.cluster.processes import open_cluster
from dro_rl.cluster.ray_results import WorkerLost
from dro_rl.errors import UserError
from dro_rl.sections.process import ClusterSection
from tests.faults import (
    FOLDER,
    SIZE,
    Fault,
    MortalHost,
    MortalTeam,
    Obedient,
    differences,
    run_of,
    start_cluster,
)

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    """A cluster's head; a test adds nodes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDER, str(tmp_path_factory.mktemp("faults")))
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("OMP_NUM_THREADS", "1")
        cluster = start_cluster()
        yield cluster
        cluster.shutdown()


def section(nodes, **settings) -> ClusterSection:
    return ClusterSection(mode="ray", address=nodes.address, start_timeout=240, **settings)


# --- whole runs -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    run, _ = run_of(tmp_path_factory.mktemp("undisturbed") / "run", "cluster.mode=local")
    return run


LOSSES = {  # of learners, by what it is to be lost in
    "an M-step": [("generator learner", "step", 1, False), ("selector learner", "step", 4)],
    "a save": [("selector learner", "save", 0), ("generator learner", "save", 1, True)],
    "a sync": [("generator learner", "weights", 1), ("selector learner", "probe", 3, True)],
    "the start": [("selector learner", "probe", 0, True), ("generator learner", "weights", 1)],
}


@pytest.mark.parametrize("settings", ["", "training.checkpoint_seconds=0"])
@pytest.mark.parametrize("losses", LOSSES.values(), ids=LOSSES)
def test_a_run_goes_on_without_a_trace_after_it_lost_learners(
    undisturbed, monkeypatch, tmp_path, losses, settings
):
    """Learners in this process, which are lost and made afresh as Ray's are."""
    faults = [Fault(*loss) for loss in losses]

    def start(self, role, cls, copies, *args, stateful=False, gpus=1):
        return MortalTeam(role, lambda: [cls(*args) for _ in range(copies)], faults)

    monkeypatch.setattr("dro_rl.cluster.processes._LocalCluster.start", start)
    more = [settings] if settings else []
    run, said = run_of(tmp_path / "run", "cluster.mode=local", *more)
    assert faults == [] and said.count("learners start again from the last checkpoint") == 2
    assert differences(run, undisturbed) == []


@pytest.fixture
def on_ray(nodes, monkeypatch) -> list[str]:
    monkeypatch.setattr("dro_rl.cluster.processes.Host", MortalHost)
    return [f"cluster.address={nodes.address}", "cluster.start_timeout=240"]


FAULTS = [
    Fault("selector engine", "select"),  # of the first evaluation
    Fault("reward service", "score", after=True),
    Fault("generator learner", "step", skip=1, after=True),  # in the middle of an M-step
    # Loads so far: at the start, on its return, after the learners'.
    Fault("selector engine", "load_weights", skip=3),
    Fault("generator engine", "answer", skip=1, after=True),
    Fault("selector learner", "save", skip=1),  # of the second iteration's checkpoint
]


def test_any_process_may_die_at_any_stage(undisturbed, on_ray, tmp_path):
    for fault in FAULTS:
        fault.plant()
    run, said = run_of(tmp_path / "run", *on_ray)
    print(said)
    assert [fault for fault in FAULTS if not fault.struck] == []
    for fault in FAULTS:
        assert re.search(rf"^{fault.role}.*: lost in {fault.method} ", said, re.M), fault
    again = re.findall(r"^(\w+ learner): lost in .*: learners start again", said, re.M)
    assert again == ["generator learner", "selector learner"]
    assert differences(run, undisturbed) == []


# --- a node ---------------------------------------------------------------------------------------


def test_a_node_dies_and_its_workers_come_back_on_the_others(nodes, tmp_path):
    told = list[str]()
    for _ in range(2):
        nodes.add_node(**SIZE)
    with open_cluster(section(nodes), 6, told.append) as cluster:
        team = cluster.start("worker", Obedient, 6)
        team.ready()
        team.on_return("load_weights", (5,), anew=True)
        team.submit("load_weights", 5)()
        doomed = crowded(nodes, team)
        wait = team.begin("square", [(i,) for i in range(60)])
        nodes.remove_node(doomed, allow_graceful=False)
        assert wait() == [i * i for i in range(60)]
        team.submit("now")()  # finds those that were lost while they had nothing to do
        team.ready()
        assert [version for version, _ in team.submit("now")()] == [5] * 6
    assert sum("lost in square" in line for line in told) >= 1
    assert len({line.split(":")[0] for line in told}) < 6


def crowded(nodes, team):
    """A node beside the head that has workers of the team."""
    import ray

    living = [ray._private.state.actors(m.actor._actor_id.hex()) for m in team.members]
    places = [actor["Address"]["NodeID"] for actor in living]
    return max((node for node in nodes.worker_nodes), key=lambda node: places.count(node.node_id))


# --- plain workers --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def told():
    return list[str]()


@pytest.fixture(scope="module")
def stacks(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("run") / "stacks"


@pytest.fixture(scope="module")
def cluster(nodes, told, stacks):
    quick = section(nodes, heartbeat_timeout=3, max_failures=2)
    with open_cluster(quick, 2, told.append, stacks) as opened:
        yield opened


@pytest.fixture(scope="module")
def team(cluster):
    started = cluster.start("worker", Obedient, 2)
    started.ready()
    return started


def test_work_of_a_lost_worker_is_done_and_it_comes_back_with_the_current_weights(
    team, told, tmp_path
):
    team.on_return("load_weights", (3,), anew=True)
    team.submit("load_weights", 3)()
    before = {pid for _, pid in team.submit("now")()}
    fatal, done = tmp_path / "fatal", list[int]()
    fatal.touch()
    calls = [(i, fatal if i == 3 else None) for i in range(8)]
    assert team.map("square", calls, done.append) == [i * i for i in range(8)]
    assert sorted(done) == list(range(8))
    team.ready()
    versions, after = zip(*team.submit("now")(), strict=True)
    assert versions == (3, 3) and len(before & set(after)) == 1
    assert re.fullmatch(r"worker [12] of 2: lost in square \(.*died.*\); it is made again", told[0])
    assert re.fullmatch(r"worker [12] of 2: back after .* s", told[1]) and len(told) == 2


def test_a_worker_whose_weights_are_wrong_does_not_come_back(team, tmp_path):
    def check(version: tuple[int, int]) -> None:
        raise UserError(f"version {version[0]} is not what the probe was of")

    team.on_return("now", (), check)
    fatal = tmp_path / "fatal"
    fatal.touch()
    with pytest.raises(UserError, match="version 3 is not what the probe was of"):
        team.map("square", [(1, fatal)], lambda i: None)
        team.ready()
    team.on_return("load_weights", (3,), anew=True)
    team.restart()
    team.ready()


def test_a_call_that_kills_every_worker_ends_with_the_reason(cluster):
    team = cluster.start("worker", Obedient, 2)  # of its own: nothing comes after its end
    team.ready()
    with pytest.raises(UserError) as ended:
        team.map("square", [(1, Path("/dev/null"))], lambda i: None)
    for words in ("worker", "square", "3 times", "cluster.max_failures (2)", "died"):
        assert words in str(ended.value)


def test_an_error_of_the_users_own_is_not_tried_again(team, tmp_path):
    flag = tmp_path / "flag"
    with pytest.raises(LookupError, match="the reward's own words"):
        team.map("refuse", [(flag,)], lambda i: None)
    assert flag.read_text() == "called\n"


def test_a_worker_that_holds_state_is_not_made_again(cluster):
    team = cluster.start("learner", Obedient, 2, stateful=True)
    first = team.ready()
    with pytest.raises(WorkerLost, match=r"learner [12] of 2: lost in square"):
        team.submit("square", 2, Path("/dev/null"))()
    team.restart()
    assert {a["pid"] for a in team.ready()}.isdisjoint(a["pid"] for a in first)
    assert team.submit("square", 3)() == [9, 9]


@pytest.mark.parametrize("how", ["computes", "moves on"])
def test_a_worker_at_work_is_left_alone(team, told, tmp_path, how):
    before, lines = team.submit("now")(), len(told)
    assert team.map("dawdle", [(how, 4.0, tmp_path / "flag")], lambda i: None) == [how]
    assert team.submit("now")() == before and len(told) == lines


def test_a_worker_that_stands_still_leaves_its_stack_and_is_replaced(team, told, stacks, tmp_path):
    calls = [("stands still", 0.0, tmp_path / "flag")]
    assert team.map("dawdle", calls, lambda i: None) == ["stands still"]
    team.ready()
    (line,) = [x for x in told if "not moved" in x]
    path = re.search(r"its stack: (\S+\.txt)", line)
    assert path and Path(path[1]).parent == stacks
    stack = Path(path[1]).read_text()
    assert "in dawdle" in stack and "in wait" in stack


def test_a_stopped_worker_is_replaced(team, told, tmp_path):
    pids = {pid for _, pid in team.submit("now")()}
    calls = [("is stopped", 0.0, tmp_path / "flag")]
    assert team.map("dawdle", calls, lambda i: None) == ["is stopped"]
    # Its silence is noticed, unless something has ended the process before.
    silent = any("no answer" in x and "no stack could be had" in x for x in told)
    ended = any("lost in dawdle (The actor is dead" in x for x in told)
    assert silent or ended, "\n".join(told)
    team.ready()
    (gone,) = pids - {pid for _, pid in team.submit("now")()}
    end = time.monotonic() + 20
    while Path(f"/proc/{gone}").exists() and time.monotonic() < end:
        time.sleep(0.1)
    assert not Path(f"/proc/{gone}").exists()  # it would keep its memory
