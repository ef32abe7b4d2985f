"""Two policies on one base: what becomes of them is what becomes of two that are apart."""

import pytest
import torch

from dro_rl.cluster.processes import open_cluster
from dro_rl.errors import UserError
from dro_rl.recipe import POLICIES
from dro_rl.records import WeightedRollout
from dro_rl.roles import start_teams
from dro_rl.teams import Teams
from dro_rl.tracking.console import Console
from tests.shared_base import LORA, recipe_of
from tests.tiny import make_example

pytestmark = pytest.mark.integration

EXAMPLES = [make_example(i) for i in range(4)]
PROBE = make_example(5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


def teams_of(folder, *, shared: bool = True, **sections) -> Teams:
    """Started, and synchronised as the loop begins."""
    recipe = recipe_of(folder, shared=shared, **sections)
    with open_cluster(recipe.cluster, 5) as cluster:
        models = {p: recipe.policy(p).model for p in POLICIES}
        teams = start_teams(recipe, cluster, models, Console(), 20)
    teams.synchronise(0, PROBE)
    return teams


def nothing(done: int) -> None:
    pass


def texts(rollouts) -> list[list[str]]:
    return [[z.text for z in r.selections] for r in rollouts]


def weights(teams: Teams, policy: str) -> dict[str, torch.Tensor]:
    found = teams.learners[policy].submit("weights")()[0]
    return {name: torch.from_numpy(array.copy()) for name, array in found.items()}


def assert_same_weights(teams: Teams, others: Teams) -> None:
    for policy in teams.learners:
        ours, theirs = weights(teams, policy), weights(others, policy)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[n], theirs[n]) for n in ours)


def step(teams: Teams, rollouts) -> list:
    """As the loop does where the generator's pass gives the rewards: the generator is a batch
    ahead of the selector."""
    generator, selector = teams.learners["generator"], teams.learners["selector"]
    told = []
    wait = generator.submit("step_and_score", rollouts[:2])
    for batch in (rollouts[2:], None):
        ((metrics, scored),) = wait()
        if batch:
            wait = generator.submit("step_and_score", batch)
        pairs = [(s.rollout, s.log_rewards) for s in scored]
        weighted = [WeightedRollout(r, rewards, rewards) for r, rewards in pairs]
        told += [metrics, selector.submit("step", weighted)()[0], [p[1] for p in pairs]]
    return told


# --- learning ------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
def test_learning_is_bit_for_bit_that_of_two_learners_apart(folder, checkpointing):
    settings = {p: {"gradient_checkpointing": checkpointing} for p in POLICIES}
    ours, theirs = (teams_of(folder, shared=shared, **settings) for shared in (True, False))
    assert_same_weights(ours, theirs)
    rollouts = theirs.select(EXAMPLES, 4, 1, nothing)
    assert texts(ours.select(EXAMPLES, 4, 1, nothing)) == texts(rollouts)
    before = {p: weights(ours, p) for p in POLICIES}
    assert step(ours, rollouts) == step(theirs, rollouts)
    assert_same_weights(ours, theirs)
    for policy in POLICIES:
        after = weights(ours, policy)
        assert any(not torch.equal(after[n], w) for n, w in before[policy].items())


def test_what_is_learned_with_dropout_does_not_depend_on_whose_turn_is_first(folder, tmp_path):
    """As of two processes; so a state that one saves while the other is ahead is its own."""
    settings = {p: {"lora": {**LORA[p], "dropout": 0.5}} for p in POLICIES}
    one, other = teams_of(folder, **settings), teams_of(folder, **settings)
    rollouts = one.select(EXAMPLES, 4, 1, nothing)
    weighted = [WeightedRollout(r, (0.5, 0.5, 0.0, 0.0), (0.25,) * 4) for r in rollouts]
    for teams, order in ((one, POLICIES), (other, POLICIES[::-1])):
        for policy in order:
            teams.learners[policy].submit("step", weighted)()
    assert_same_weights(one, other)
    one.learners["selector"].submit("save", tmp_path / "selector")()
    for teams, order in ((one, POLICIES), (other, POLICIES[::-1])):
        for policy in order:
            teams.learners[policy].submit("step", weighted)()
    assert_same_weights(one, other)
    again = teams_of(folder, **settings)
    again.learners["selector"].submit("restore", tmp_path / "selector")()
    for policy in POLICIES[::-1]:
        again.learners[policy].submit("step", weighted)()
    for name, weight in weights(again, "selector").items():
        assert torch.equal(weight, weights(one, "selector")[name])


def test_each_policy_learns_its_own_adapter_and_nothing_else(folder):
    teams = teams_of(folder)
    held = _process(teams).model
    base = {n: p.clone() for n, p in held.named_parameters() if "lora_" not in n}
    generator = weights(teams, "generator")
    rollouts = teams.select(EXAMPLES, 4, 1, nothing)
    weighted = [WeightedRollout(r, (1.0, 0.0, 0.0, 0.0), (0.25,) * 4) for r in rollouts]
    teams.learners["selector"].submit("step", weighted)()
    assert all(torch.equal(weights(teams, "generator")[n], w) for n, w in generator.items())
    teams.learners["generator"].submit("step", weighted)()
    assert any(not torch.equal(weights(teams, "generator")[n], w) for n, w in generator.items())
    for name, parameter in held.named_parameters():
        if "lora_" not in name:
            assert torch.equal(parameter, base[name]) and not parameter.requires_grad


def test_both_learners_and_the_reward_service_hold_one_base(folder):
    teams = teams_of(folder)
    parts = _process(teams).parts
    assert parts.keys() == {"selector", "generator", "reward"}
    pointers = [
        {n: p.data_ptr() for n, p in part.model.named_parameters() if "lora_" not in n}
        for part in parts.values()
    ]
    assert pointers[0] and pointers[0] == pointers[1] == pointers[2]
    engines = teams.engines["selector"].team.workers[0].parts
    models = {id(worker._engine._model) for worker in engines.values()}
    assert len(models) == 1


def test_a_learner_is_saved_and_restored_beside_the_other(folder, tmp_path):
    teams = teams_of(folder)
    rollouts = teams.select(EXAMPLES, 4, 1, nothing)
    step(teams, rollouts)
    for policy, learner in teams.learners.items():
        learner.submit("save", tmp_path / policy)()
    again = teams_of(folder)
    for policy, learner in again.learners.items():
        learner.submit("restore", tmp_path / policy)()
    assert_same_weights(again, teams)
    again.synchronise(1, PROBE)
    assert step(again, rollouts) == step(teams, rollouts)
    assert_same_weights(again, teams)


def test_a_saved_policy_is_whole_and_is_the_learners(folder, tmp_path):
    """So that evaluate and answer take it as any other."""
    teams = teams_of(folder)
    rollouts = teams.select(EXAMPLES, 4, 1, nothing)
    step(teams, rollouts)
    for policy, learner in teams.learners.items():
        learner.submit("save", tmp_path / policy)()
    teams.synchronise(1, PROBE)
    recipe = recipe_of(folder, shared=True)
    with open_cluster(recipe.cluster, 5) as cluster:
        models = {p: str(tmp_path / p) for p in POLICIES}
        apart = start_teams(recipe, cluster, models, Console(), None)
    ours, theirs = (t.select(EXAMPLES, 1, 1, nothing, greedy=True) for t in (teams, apart))
    assert texts(ours) == texts(theirs)
    chosen = [r.selections[0].documents for r in ours]
    assert teams.answer(EXAMPLES, chosen, nothing) == apart.answer(EXAMPLES, chosen, nothing)
    ours, theirs = (t.log_likelihoods(rollouts, nothing) for t in (teams, apart))
    for row, other in zip(ours, theirs, strict=True):
        assert row == pytest.approx(other, abs=1e-3)


# --- serving and scoring -------------------------------------------------------------------------


def test_a_sync_gives_each_policy_its_own_adapter(folder):
    teams = teams_of(folder)
    rollouts = teams.select(EXAMPLES, 4, 1, nothing)
    step(teams, rollouts)
    for policy in POLICIES:
        with pytest.raises(UserError, match=f"the {policy} engine and the {policy}'s learner"):
            teams.check(policy, PROBE)
    gaps = teams.synchronise(1, PROBE)
    assert gaps.keys() == set(POLICIES) and max(gaps.values()) < 1e-4
    drawn = teams.select(EXAMPLES, 4, 2, nothing)
    assert {r.version for r in drawn} == {1}
    for rollout, logps in zip(drawn, teams.selector_logps(drawn, nothing), strict=True):
        assert [z.logp for z in rollout.selections] == pytest.approx(logps, abs=1e-3)


def test_one_policys_adapter_does_not_disturb_the_other(folder):
    teams = teams_of(folder)
    rollouts = teams.select(EXAMPLES, 4, 1, nothing)
    chosen = [r.selections[0].documents for r in rollouts]
    answers = teams.answer(EXAMPLES, chosen, nothing)
    weighted = [WeightedRollout(r, (5.0, -1.0, -1.0, -1.0), (0.0,) * 4) for r in rollouts]
    for _ in range(3):
        teams.learners["selector"].submit("step", weighted)()
    teams.synchronise(1, PROBE)
    assert texts(teams.select(EXAMPLES, 4, 1, nothing)) != texts(rollouts)
    assert teams.answer(EXAMPLES, chosen, nothing) == answers


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_scores_are_those_of_a_service_apart_without_dropout(folder, dropout):
    settings = {p: {"lora": {**LORA[p], "dropout": dropout}} for p in POLICIES}
    ours = teams_of(folder, **settings)
    rollouts = ours.select(EXAMPLES, 4, 1, nothing)
    weighted = [WeightedRollout(r, (0.25,) * 4, (1.0, 0.5, 0.0, 0.0)) for r in rollouts]
    ours.learners["generator"].submit("step", weighted)()
    ours.synchronise(1, PROBE)
    theirs = teams_of(folder, shared=False, **settings)
    theirs.reward.submit("load_weights", ours.learners["generator"].leave("weights"), 1)()
    found, wanted = (t.reward.submit("score", rollouts)()[0] for t in (ours, theirs))
    for a, b in zip(found, wanted, strict=True):
        assert a.log_rewards == pytest.approx(b.log_rewards, abs=1e-3)
    assert _process(ours).model.training


def test_a_frozen_generator_is_the_base(folder):
    alone = {"algorithm": {"samples": 4, "train": ["selector"]}}
    ours, theirs = (teams_of(folder, shared=shared, **alone) for shared in (True, False))
    rollouts = ours.select(EXAMPLES, 4, 1, nothing)
    weighted = [WeightedRollout(r, (1.0, 0.0, 0.0, 0.0), (0.0,) * 4) for r in rollouts]
    for _ in range(3):
        ours.learners["selector"].submit("step", weighted)()
    ours.synchronise(1, PROBE)
    found, wanted = (t.log_likelihoods(rollouts, nothing) for t in (ours, theirs))
    assert found == wanted
    chosen = [r.selections[0].documents for r in rollouts]
    assert ours.answer(EXAMPLES, chosen, nothing) == theirs.answer(EXAMPLES, chosen, nothing)
    ours.learners["selector"].submit("step", weighted)()  # scoring left its adapter where it was


def test_grpos_reference_is_the_base_without_either_adapter(folder):
    restrained = {"algorithm": {"kind": "grpo", "samples": 4, "kl": 0.5}}
    ours, theirs = (teams_of(folder, shared=shared, **restrained) for shared in (True, False))
    rollouts = ours.select(EXAMPLES, 4, 1, nothing)
    assert step(ours, rollouts) == step(theirs, rollouts)
    told = step(ours, rollouts), step(theirs, rollouts)
    assert told[0] == told[1] and told[0][1].kl > 0


def test_ppos_value_head_learns_beside_the_adapters(folder):
    value = {"algorithm": {"kind": "ppo", "samples": 4}}
    ours, theirs = (teams_of(folder, shared=shared, **value) for shared in (True, False))
    rollouts = ours.select(EXAMPLES, 4, 1, nothing)
    assert ours.values(rollouts, nothing) == theirs.values(rollouts, nothing)


def _process(teams: Teams):
    """What the process of both learners holds."""
    return teams.learners["selector"].team.workers[0]
