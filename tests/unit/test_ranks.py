"""How work is dealt to ranks, and that they are one worker for those who ask."""

import random
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from pydantic import ValidationError

from dro_rl.cluster.processes import LocalTeam
from dro_rl.cluster.rank_team import RankTeam
from dro_rl.cluster.supervision import WorkerLost
from dro_rl.errors import UserError
from dro_rl.passes import Passes, Question
from dro_rl.policy.completion import Completion
from dro_rl.ranks import shares
from tests.tiny import make_recipe

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_shares_are_a_partition_and_none_has_more_than_the_mean_and_one_item(n):
    draw = random.Random(n)
    for count in (0, 1, 2, 5, 40):
        costs = [draw.randint(1, 1000) for _ in range(count)]
        found = shares(costs, n)
        assert sorted(i for part in found for i in part) == list(range(count))
        most = max(sum(costs[i] for i in part) for part in found)
        assert most <= sum(costs) / n + max(costs, default=0)


def test_a_check_without_memory_says_what_to_do_about_it():
    likelihood = SimpleNamespace(check=Mock(side_effect=torch.OutOfMemoryError("CUDA")))
    passes = Passes(likelihood, SimpleNamespace(size=2, rank=1), 100)
    question = Question("q", [Completion((1,), (2,))])
    with pytest.raises(UserError, match=r"out of memory on rank 1.*raise the number of ranks"):
        passes.over([question], lambda numbers: None, lambda number: None)


class Rank:
    """Remembers what it was asked."""

    def __init__(self, number: int) -> None:
        self.number, self.asked = number, []

    def step(self, batch: str) -> tuple[int, str]:
        self.asked.append(batch)
        return self.number, batch

    def break_off(self) -> None:
        raise RuntimeError("[gloo/transport/tcp/pair.cc:538] Connection closed by peer [::1]:1")

    def fail(self) -> None:
        raise RuntimeError("shapes do not match")


def test_every_call_goes_to_all_ranks_and_the_first_answers():
    ranks = [Rank(i) for i in range(3)]
    team, done = RankTeam(LocalTeam(ranks)), []
    assert team.submit("step", "a")() == [(0, "a")]
    assert team.map("step", [("b",), ("c",)], done.append) == [(0, "b"), (0, "c")]
    assert team.begin("step", [("d",)])() == [(0, "d")]
    assert [r.asked for r in ranks] == [["a", "b", "c", "d"]] * 3
    assert done == [0, 1]


def test_a_broken_connection_is_a_lost_worker_and_another_error_is_not():
    class Later(LocalTeam):
        """Its errors come when results are waited for, as on a cluster."""

        def submit(self, method, *args):
            return lambda: LocalTeam.submit(self, method, *args)()

    team = RankTeam(Later([Rank(0), Rank(1)]))
    with pytest.raises(WorkerLost, match="Connection closed by peer"):
        team.submit("break_off")()
    with pytest.raises(RuntimeError, match="shapes do not match"):
        team.submit("fail")()


def test_several_ranks_need_several_processes(tmp_path):
    with pytest.raises(ValidationError, match=r"selector.ranks: several processes need"):
        make_recipe(tmp_path, selector={"ranks": 2})
    frozen = {"train": ["selector"]}
    assert make_recipe(tmp_path, generator={"ranks": 2}, algorithm=frozen).generator.ranks == 2
    recipe = make_recipe(tmp_path, selector={"ranks": 2}, cluster={"mode": "ray"})
    assert recipe.selector.ranks == 2
