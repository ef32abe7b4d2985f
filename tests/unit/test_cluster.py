"""Workers in this process, and Ray addresses that lead nowhere."""

import socket
import time

import pytest

from dro_rl.cluster.placement import gpu_shares
from dro_rl.cluster.processes import open_cluster
from dro_rl.errors import UserError
from dro_rl.sections.process import ClusterSection

pytestmark = pytest.mark.unit


class Worker:
    """Remembers what it was asked."""

    made = 0

    def __init__(self, name: str, factor: int) -> None:
        type(self).made += 1
        self.name, self.factor, self.seen = f"{name}{type(self).made}", factor, []

    def ready(self) -> dict[str, str]:
        return {"name": self.name}

    def times(self, a: int, b: int = 1) -> int:
        self.seen.append(a)
        return a * b * self.factor

    def calls(self) -> list[int]:
        return self.seen

    def refuse(self) -> None:
        raise UserError("not this")

    def crash(self, a: int) -> float:
        return 1 / a


@pytest.fixture
def team(monkeypatch):
    monkeypatch.setattr(Worker, "made", 0)
    with open_cluster(ClusterSection(mode="local"), 3) as cluster:
        yield cluster.start("worker", Worker, 3, "w", 10)


def test_every_worker_of_a_role_is_made_and_asked(team):
    assert team.ready() == [{"name": "w1"}, {"name": "w2"}, {"name": "w3"}]
    assert team.submit("times", 2, 3)() == [60, 60, 60]


def test_mapped_results_are_in_the_order_of_the_calls(team):
    done = []
    results = team.map("times", [(i,) for i in range(7)], done.append)
    assert results == [10 * i for i in range(7)]
    assert sorted(done) == list(range(7))
    assert sorted(i for seen in team.submit("calls")() for i in seen) == list(range(7))
    assert all(team.submit("calls")())  # every worker had its share


def test_mapping_nothing_gives_nothing(team):
    assert team.map("times", [], lambda i: None) == []


def test_errors_of_a_worker_reach_the_caller_as_they_are(team):
    with pytest.raises(UserError, match="not this"):
        team.submit("refuse")()
    with pytest.raises(ZeroDivisionError):
        team.map("crash", [(1,), (0,)], lambda i: None)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1:{port}", "ray://127.0.0.1:{port}", "127.0.0.1:99999", "a..b:6379"],
)
def test_an_address_where_nothing_listens_is_refused_at_once(address):
    address = address.format(port=free_port())
    start = time.monotonic()
    section = ClusterSection(mode="ray", address=address)
    with (
        pytest.raises(UserError, match="nothing answers there.*ray start --head") as told,
        open_cluster(section, 4),
    ):
        pass
    assert address in str(told.value)
    assert time.monotonic() - start < 10


def test_the_address_of_a_job_is_taken_from_the_environment(monkeypatch):
    address = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match=address), open_cluster(ClusterSection(mode="ray"), 4):
        pass


def test_every_process_fits_on_the_gpus():
    for processes in range(1, 20):
        for gpus in range(1, 9):
            rank, share = gpu_shares(processes, 0, gpus)
            assert rank == share and int(1 / share + 1e-9) * gpus >= processes
    assert gpu_shares(5, 0, 8) == (1, 1)
    assert gpu_shares(5, 2, 0) == (0, 0)


def test_ranks_have_a_gpu_each_and_the_others_fit_beside():
    for ranks in range(2, 9):
        for gpus in range(ranks, 9):
            for others in range(1, 12):
                rank, share = gpu_shares(ranks + others, ranks, gpus)
                assert rank > 0.5  # no two on one GPU
                beside = int((1 - rank) / share + 1e-9) * ranks
                assert beside + int(1 / share + 1e-9) * (gpus - ranks) >= others
    with pytest.raises(UserError, match="3 processes need a GPU each, and there are 2"):
        gpu_shares(6, 3, 2)


def test_what_engines_of_several_gpus_take_is_not_shared():
    assert gpu_shares(5, 2, 8, taken=4) == gpu_shares(5, 2, 4)
    assert gpu_shares(3, 0, 0, taken=4) == (0, 0)
    with pytest.raises(UserError, match="tensor_parallel: the engines take 4 .* there are 4"):
        gpu_shares(3, 0, 4, taken=4)
    with pytest.raises(UserError, match="3 processes need a GPU each, and there are 2 left by"):
        gpu_shares(6, 3, 6, taken=4)
