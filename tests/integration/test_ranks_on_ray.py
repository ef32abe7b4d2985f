"""Two ranks of a learner on Ray, as the loop sees them: one worker."""

import os
import signal

import pytest
import torch

from dro_rl.cluster.processes import open_cluster
from dro_rl.cluster.rank_team import RankTeam
from dro_rl.cluster.supervision import WorkerLost
from dro_rl.passes import PassTooLarge
from dro_rl.policy.weights import unpack
from tests.ranks import make_batch, make_learner, recipe_of

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


class Learner:
    """A learner of the world's `life`, and what a test asks beside."""

    def __init__(self, life, folder, place):
        self.learner = make_learner(life, folder, place)

    def __getattr__(self, name):
        return getattr(self.learner, name)

    def run_short(self):
        """Of memory, in the next backward pass, if this is the second rank."""
        self.learner.objective.passes.tokens = 1000  # several questions
        plain = torch.Tensor.backward

        def backward(loss, *args, **kwargs):
            torch.Tensor.backward = plain
            raise torch.OutOfMemoryError("CUDA out of memory")

        if self.learner.ranks.rank == 1:
            torch.Tensor.backward = backward

    def process(self):
        return os.getpid(), self.learner.ranks.rank


def test_two_ranks_step_score_and_give_weights_and_start_again_when_one_fails(tmp_path):
    alone = make_learner("lora", tmp_path)
    batch = make_batch(alone)
    rollouts = [w.rollout for w in batch]
    scores, wanted = alone.score(rollouts), alone.step(batch)
    section = recipe_of("lora", tmp_path).cluster.model_copy(update={"mode": "ray"})
    with open_cluster(section, 2, ranks=2) as cluster:
        ranks = cluster.start_ranks("selector learner", Learner, 2, "lora", tmp_path)
        team = RankTeam(ranks)
        (about,) = team.ready()
        assert about["ranks"] == 2
        found = team.map("score", [(rollouts[:3],), (rollouts[3:],)], lambda number: None)
        assert [row for part in found for row in part] == [
            pytest.approx(row, abs=1e-5) for row in scores
        ]
        (told,) = team.submit("step", batch)()
        assert told.loss == pytest.approx(wanted.loss, rel=1e-5, abs=1e-5)
        import ray

        weights = unpack(ray.get(team.leave("weights")))
        for name, weight in unpack(alone.weights()).items():
            assert (weights[name] - weight).norm() < 1e-3 * max(weight.norm(), 1)

        (first, zero), (second, one) = ranks.submit("process")()
        assert (zero, one) == (0, 1) and first != second
        os.kill(second, signal.SIGKILL)
        with pytest.raises(WorkerLost):
            team.submit("step", batch)()
        team.restart()
        team.ready()
        (again,) = team.submit("step", batch)()
        assert again.loss == pytest.approx(wanted.loss, rel=1e-5, abs=1e-5)

        ranks.submit("run_short")()
        with pytest.raises(PassTooLarge, match="on rank 1") as short:
            team.submit("step", batch)()
        team.restart()
        team.ready()
        team.submit("limit", short.value.tokens)()
        (again,) = team.submit("step", batch)()
        assert again.loss == pytest.approx(wanted.loss, rel=1e-5, abs=1e-5)
