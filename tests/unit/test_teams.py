"""Work divided among engines, in this process, on the plain engine."""

import math

import pytest

from dro_rl.cluster.processes import open_cluster
from dro_rl.policy import causal_lm
from dro_rl.policy.merging import merged_weights
from dro_rl.policy.weights import pack
from dro_rl.recipe import POLICIES
from dro_rl.roles import start_teams
from dro_rl.rollout.engine import Usage
from dro_rl.sections.process import ClusterSection
from dro_rl.teams import Teams
from dro_rl.tracking.console import Console
from tests.tiny import make_example, make_recipe

pytestmark = pytest.mark.unit
EXAMPLES = [make_example(i) for i in range(5)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


def make_teams(folder, workers: int) -> Teams:
    recipe = make_recipe(folder, rollout={"engine": "transformers", "workers": workers})
    with open_cluster(recipe.cluster, 4) as cluster:
        models = {p: recipe.policy(p).model for p in POLICIES}
        return start_teams(recipe, cluster, models, Console(), None)


def nothing(done: int) -> None:
    pass


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_each_engine_selects_for_a_part_of_the_questions_in_order(folder, workers):
    teams, done = make_teams(folder, workers), []
    rollouts = teams.select(EXAMPLES, 4, 7, done.append)
    assert [r.example for r in rollouts] == EXAMPLES
    assert sum(done) == len(EXAMPLES) and len(done) == workers
    assert max(done) - min(done) <= 1
    assert teams.select(EXAMPLES, 4, 7, nothing) == rollouts
    assert teams.select(EXAMPLES, 4, 8, nothing) != rollouts
    shares = [usage.prompt_tokens for usage in teams.engines["selector"].submit("statistics")()]
    assert len(shares) == workers and min(shares) > 0


def test_engines_that_select_for_the_same_question_draw_for_themselves(folder):
    two = make_teams(folder, 2)
    one, other = two.select([EXAMPLES[0]] * 2, 16, 7, nothing)
    assert [s.text for s in one.selections] != [s.text for s in other.selections]


def test_fewer_questions_than_engines(folder):
    teams = make_teams(folder, 3)
    assert [r.example for r in teams.select(EXAMPLES[:1], 4, 7, nothing)] == EXAMPLES[:1]
    assert teams.select([], 4, 7, nothing) == teams.answer([], [], nothing) == []


def test_every_selection_is_answered_as_it_is_alone(folder):
    teams, done = make_teams(folder, 1), []
    rollouts = teams.select(EXAMPLES, 4, 7, nothing)
    answers = teams.answer_all(rollouts, done.append)
    assert sum(done) == len(EXAMPLES)
    for rollout, texts in zip(rollouts, answers, strict=True):
        for selection, text in zip(rollout.selections, texts, strict=True):
            assert [text] == teams.answer([rollout.example], [selection.documents], nothing)


def test_statistics_are_of_all_engines_since_they_were_last_asked(folder):
    teams = make_teams(folder, 2)
    rollouts = teams.select(EXAMPLES, 4, 7, nothing)
    prompts = sum(len(r.prompt_ids) for r in rollouts)
    sampled = sum(len(s.token_ids) for r in rollouts for s in r.selections)
    seen = teams.statistics("selector")
    assert seen == Usage(4 * prompts, 3 * prompts, sampled)
    assert seen.prefix_cache_hits == pytest.approx(3 / 4)
    assert teams.statistics("generator") == Usage()
    assert math.isnan(teams.statistics("selector").prefix_cache_hits)


@pytest.mark.parametrize("workers", [1, 3])
def test_what_is_sampled_in_the_background_is_the_same(folder, workers):
    teams = make_teams(folder, workers)
    wait = teams.begin_select(EXAMPLES, 4, 7)
    assert wait() == teams.select(EXAMPLES, 4, 7, nothing)


def test_selections_of_other_weights_than_the_engines_were_given_are_refused(folder):
    teams = make_teams(folder, 1)
    section = teams.recipe.selector
    model = causal_lm.load_model(section, section.model, training=False)
    weights = pack(merged_weights(model))
    teams.engines["selector"].submit("load_weights", weights, 4)()
    with pytest.raises(RuntimeError, match="'q0' was sampled with version 4.*given version 0"):
        teams.select(EXAMPLES, 2, 7, nothing)
    with pytest.raises(RuntimeError, match="version 4"):
        teams.begin_select(EXAMPLES, 2, 7)()
    teams.versions["selector"] = 4
    rollouts = teams.select(EXAMPLES, 2, 7, nothing)
    assert {r.version for r in rollouts} == {4} and not teams.are_stale(rollouts)


def test_selections_are_stale_beyond_what_the_recipe_allows(folder):
    teams = make_teams(folder, 1)
    rollouts = teams.select(EXAMPLES, 2, 7, nothing)
    stale = []
    for allowed in (0, 1, 2):
        rollout = teams.recipe.rollout.model_copy(update={"max_staleness": allowed})
        teams.recipe = teams.recipe.model_copy(update={"rollout": rollout})
        for teams.versions["selector"] in (0, 1, 2, 3):
            stale.append(teams.are_stale(rollouts))
    assert stale == [0, 1, 1, 1, 0, 0, 1, 1, 0, 0, 0, 1]


class Noting:
    """A cluster that notes which roles are started; ranks are as a single learner."""

    def __init__(self, cluster):
        self.cluster, self.roles = cluster, []

    def start(self, role, *args, **how):
        self.roles.append(role)
        return self.cluster.start(role, *args, **how)

    def start_ranks(self, role, cls, ranks, *args):
        return self.start(role, cls, 1, *args, stateful=True)


def roles_of(recipe, learner_steps=None) -> tuple[list[str], Teams]:
    with open_cluster(ClusterSection(mode="local"), 4) as cluster:
        noting = Noting(cluster)
        models = {p: recipe.policy(p).model for p in POLICIES}
        return noting.roles, start_teams(recipe, noting, models, Console(), learner_steps)


def test_ranks_have_their_room_before_others_take_it(folder):
    recipe = make_recipe(folder, generator={"ranks": 2}, cluster={"mode": "ray"})
    roles, teams = roles_of(recipe, learner_steps=4)
    assert roles[0] == "generator learner" and roles[-1] == "selector learner" and len(roles) == 5
    assert list(teams.learners) == ["selector", "generator"]


def test_a_call_that_hangs_will_name_the_reward(folder):
    """By its role, which a time-out's message has: tests/integration/test_ray_cluster.py."""
    roles, _ = roles_of(make_recipe(folder, reward={"use": "rewards/f1.py", "beta": 2}))
    assert "reward service (rewards/f1.py (beta: 2))" in roles
