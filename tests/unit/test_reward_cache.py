"""What is remembered of selections, and when it is forgotten."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dro_rl.records import Example, Rollout
from dro_rl.reward.cache import Cache
from dro_rl.sections.reward import RewardSection
from dro_rl.teams import Teams
from tests.tiny import make_example, make_recipe, make_rollout

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return make_recipe(tmp_path_factory.mktemp("models"))


class Asked:
    """Counts what is asked; the value of a selection is the text of its documents."""

    def __init__(self, rollouts: list[Rollout]) -> None:
        self.rollouts, self.seen = rollouts, list[tuple[str, ...]]()

    def __call__(self, new):
        rows = [
            [tuple(r.example.candidates[i].text for i in s.documents) for s in r.selections]
            for r in (n.of(self.rollouts) for n in new)
        ]
        self.seen += [value for row in rows for value in row]
        return rows


def nothing(done: int) -> None:
    pass


def look_up(cache: Cache, *rollouts: Rollout):
    asked = Asked(list(rollouts))
    return cache.look_up(asked.rollouts, asked, nothing), asked.seen


def turned(example: Example) -> Example:
    """The same question with its candidates in the opposite order."""
    return replace(example, candidates=example.candidates[::-1])


def test_equal_selections_are_asked_once_and_every_one_gets_its_value(recipe):
    rollout = make_rollout(recipe, make_example(), [(0, 1), (2,), (0, 1), (), (1, 0)])
    (row,), seen = look_up(Cache(), rollout)
    assert len(seen) == 4 and row[0] == row[2] != row[4]
    assert row[0] == tuple(rollout.example.candidates[i].text for i in (0, 1))
    assert row[3] == ()


def test_documents_count_and_not_their_numbers(recipe):
    example, cache = make_example(), Cache()
    first = make_rollout(recipe, example, [(0, 1), (2,)])
    look_up(cache, first)
    again = make_rollout(recipe, turned(example), [(4, 3), (0, 1), (3, 4)])
    (row,), seen = look_up(cache, again)
    assert row[0] == tuple(example.candidates[i].text for i in (0, 1))
    assert seen == [row[1], row[2]]  # the same numbers are other documents; so is another order


def test_one_question_twice_in_a_call_is_asked_once(recipe):
    example = make_example()
    rollouts = [
        make_rollout(recipe, e, [d]) for e, d in ((example, (0, 1)), (turned(example), (4, 3)))
    ]
    rows, seen = look_up(Cache(), *rollouts)
    assert rows[0] == rows[1] and len(seen) == 1


def test_other_questions_and_other_answers_are_not_the_same(recipe):
    example = make_example()
    cache = Cache()
    look_up(cache, make_rollout(recipe, example, [(0,)]))
    for other in (replace(example, id="x"), replace(example, answers=("Basel",))):
        _, seen = look_up(cache, make_rollout(recipe, other, [(0,)]))
        assert len(seen) == 1


def test_it_keeps_no_more_than_its_size_the_last_used(recipe):
    example, cache = make_example(), Cache(size=2)
    one, two, three = (make_rollout(recipe, example, [(i,)]) for i in range(3))
    for rollout in (one, two, one, three):  # which drops two
        look_up(cache, rollout)
    assert len(look_up(cache, one)[1]) == 0
    assert len(look_up(cache, two)[1]) == 1


# --- in a run -----------------------------------------------------------------------------------


def make_teams(recipe, reward: str, monkeypatch) -> tuple[Teams, list[int]]:
    """Teams of a reward, and the number of selections that its service is asked to score, by
    call."""
    from dro_rl.cluster.processes import open_cluster
    from dro_rl.recipe import POLICIES
    from dro_rl.reward.service import RewardService
    from dro_rl.roles import start_teams
    from dro_rl.tracking.console import Console

    recipe = recipe.model_copy(update={"reward": RewardSection(use=reward)})
    with open_cluster(recipe.cluster, 5) as cluster:
        models = {p: recipe.policy(p).model for p in POLICIES}
        teams = start_teams(recipe, cluster, models, Console(), 4)
    asked, score = [], RewardService.score

    def counted(self, rollouts, answers=None):
        asked.append(sum(len(r.selections) for r in rollouts))
        return score(self, rollouts, answers)

    monkeypatch.setattr(RewardService, "score", counted)
    return teams, asked


@pytest.mark.parametrize(
    ("reward", "after_new_weights"),
    [("answer_likelihood", 2), ("exact_match", 2), ("gold_recall", 0)],
)
def test_scores_are_remembered_until_the_weights_that_they_follow_from_change(
    recipe, monkeypatch, reward, after_new_weights
):
    teams, asked = make_teams(recipe, f"rewards/{reward}.py", monkeypatch)
    example, done = make_example(), []
    rollouts = [make_rollout(recipe, example, [(0, 1), (2,), (0, 1)])]
    turned_round = [make_rollout(recipe, turned(example), [(4, 3), (2,), (4, 3)])]

    def scored(some):
        answers = teams.answer_all(some, nothing) if "answer" in teams.needs else None
        return teams.score(some, answers, done.append)

    first = scored(rollouts)
    again = scored(turned_round)
    assert [s.rollout for s in again] == turned_round
    assert again[0].log_rewards == first[0].log_rewards
    assert again[0].answer_tokens == first[0].answer_tokens
    assert asked == [2] and sum(done) == 2
    teams.synchronise(1, make_example(5))
    assert scored(rollouts)[0].log_rewards == pytest.approx(first[0].log_rewards, abs=1e-6)
    assert sum(asked[1:]) == after_new_weights


def test_answers_and_likelihoods_are_remembered_too(recipe, monkeypatch):
    teams, _ = make_teams(recipe, "rewards/exact_match.py", monkeypatch)
    rollouts = [make_rollout(recipe, make_example(i), [(0, 1), (2,), (0, 1)]) for i in range(2)]
    texts, bound = teams.answer_all(rollouts, nothing), teams.log_likelihoods(rollouts, nothing)
    teams.statistics("generator"), teams.scored_tokens()
    assert teams.answer_all(rollouts, nothing) == texts
    assert teams.log_likelihoods(rollouts, nothing) == bound
    assert teams.statistics("generator").prompt_tokens == teams.scored_tokens() == 0
    teams.synchronise(1, make_example(5))
    teams.answer_all(rollouts, nothing), teams.log_likelihoods(rollouts, nothing)
    assert teams.statistics("generator").prompt_tokens > 0 < teams.scored_tokens()


def test_a_resumed_run_takes_over_scores_of_the_same_reward_alone(recipe, monkeypatch, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text((ROOT / "rewards" / "gold_recall.py").read_text())
    rollouts = [make_rollout(recipe, make_example(), [(0, 1), (2,)])]

    def asked_after(known) -> int:
        teams, asked = make_teams(recipe, str(file), monkeypatch)
        teams.restore_known(known)
        teams.score(rollouts, None, nothing)
        return sum(asked)

    teams, _ = make_teams(recipe, str(file), monkeypatch)
    teams.score(rollouts, None, nothing)
    known = json.loads(json.dumps(teams.known()))
    assert asked_after(known) == 0
    file.write_text(file.read_text() + "# mended\n")
    assert asked_after(known) == 2
