"""Answer scores, selection scores and the evaluation summary."""

from __future__ import annotations

import math

import pytest

from dro_rl.errors import UserError
from dro_rl.evaluation import (
    EvaluatedExample,
    answer_recall,
    exact_match,
    f1,
    gold_recall,
    normalise_answer,
    summarise,
)
from dro_rl.records import Document, Example, Outcome
from dro_rl.reward import load_reward

pytestmark = pytest.mark.unit

CANDIDATES = (
    Document("Kovac birthplace", "Lyon, according to town records.", is_gold=True),
    Document("Silva trade", "pilot, the census shows.", is_gold=True),
    Document("Silva hobby", "Chess."),
    Document("New York", "A city in the U.S. state of that name."),
)


def example(**changes) -> Example:
    fields = {"id": "q1", "question": "Name?", "answers": ("Lyon",), "candidates": CANDIDATES}
    return Example(**(fields | changes))


def evaluated(**changes) -> EvaluatedExample:
    fields = {
        "example": example(),
        "documents": (2, 0),
        "malformed": False,
        "answer": "Lyon",
        "log_likelihoods": (-1.0, -3.0),
        "selector_logps": (-2.0, -4.0),
    }
    return EvaluatedExample(**(fields | changes))


# --- rewards --------------------------------------------------------------------------------------


def rewarded(*log_rewards: float, scale: str = "log") -> EvaluatedExample:
    """Without a generator."""
    return evaluated(answer=None, log_likelihoods=(), log_rewards=log_rewards, reward_scale=scale)


def test_a_linear_reward_is_its_mean():
    some = [rewarded(0.0, -math.inf, scale="linear"), rewarded(0.0, 0.0, scale="linear")]
    assert [one.reward for one in some] == [0.5, 1.0]
    assert summarise(some, iteration=0, seconds=1.0)["reward"] == 0.75


def test_a_log_reward_is_the_bound_in_nats():
    """As of a generator's likelihoods, however small."""
    some = [rewarded(-800.0, -802.0), rewarded(-1.0, -math.inf), rewarded(-math.inf, -math.inf)]
    first = evaluated(log_likelihoods=(-800.0, -802.0)).bound
    assert [one.reward for one in some] == [first, pytest.approx(-1 - math.log(2)), None]
    wanted = (first - 1 - math.log(2)) / 2
    assert summarise(some, iteration=0, seconds=1.0)["reward"] == pytest.approx(wanted)
    assert summarise(some[2:], iteration=0, seconds=1.0)["reward"] is None


# --- answers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("The  Denver Broncos!", "denver broncos"),
        ("  a cat, an owl\tand the dog ", "cat owl and dog"),
        ("U.S.A.", "usa"),
        ("Anna and Theodore", "anna and theodore"),  # articles only as whole words
        ("well-known", "wellknown"),  # punctuation leaves no space
        ("the-end", "theend"),  # punctuation goes first
        ("Café “Noir”", "café “noir”"),  # other punctuation and accents stay
        ("The", ""),
    ],
)
def test_normalisation_is_squads(text, normalised):
    assert normalise_answer(text) == normalised


def test_exact_match_takes_any_of_the_answers():
    assert exact_match("the Santa Clara, California.", ["Levi's", "Santa Clara California"]) == 1
    assert exact_match("Santa Clara", ["Santa Clara California"]) == 0
    assert exact_match("Santa Clara", []) == 0


@pytest.mark.parametrize(
    ("prediction", "answers", "score"),
    [
        ("Denver Broncos", ["the Denver Broncos"], 1),
        ("Denver", ["Denver Broncos"], 2 / 3),
        ("the Broncos of Denver city", ["Denver Broncos"], 2 * 2 / (4 + 2)),
        ("Denver", ["Carolina", "Denver Broncos", "Denver Broncos team"], 2 / 3),
        ("new new york", ["new york"], 0.8),  # a token counts as often as it occurs
        ("Carolina", ["Denver"], 0),
        ("", ["Denver"], 0),
        ("the", ["a"], 0),  # v1.1 and KILT: nothing shared is 0
        ("Denver", [], 0),
    ],
)
def test_f1_is_squads(prediction, answers, score):
    assert f1(prediction, answers) == pytest.approx(score)


@pytest.mark.parametrize(
    ("prediction", "answers", "squad", "hotpotqa"),
    [
        ("yes", ["yes"], 1, 1),
        ("Yes.", ["yes"], 1, 1),
        ("yes it is", ["yes"], 2 / 4, 0),  # the reference is closed: nothing but it counts
        ("no", ["no, never"], 2 / 3, 0),  # and so is the prediction
        ("no", ["yes"], 0, 0),
        ("noanswer", ["noanswer given"], 2 / 3, 0),
        ("yes it is", ["no", "it is yes"], 1, 1),  # 2WikiMultihopQA's best over aliases
        ("Denver", ["Denver Broncos"], 2 / 3, 2 / 3),
        ("yes sir", ["yes madam"], 1 / 2, 1 / 2),  # neither is closed
    ],
)
def test_f1_knows_hotpotqas_rule_for_yes_and_no(prediction, answers, squad, hotpotqa):
    """By hand after f1_score of hotpot_evaluate_v1.py and of SQuAD's evaluate-v1.1.py."""
    assert f1(prediction, answers) == pytest.approx(squad)
    assert f1(prediction, answers, "hotpotqa") == pytest.approx(hotpotqa)


@pytest.mark.parametrize(("metric", "score"), [("squad", 2 / 4), ("hotpotqa", 0)])
def test_evaluation_and_reward_follow_the_examples_rule(metric, score):
    asked = example(answers=("yes",), metric=metric)
    summary = summarise([evaluated(example=asked, answer="yes it is")], iteration=0, seconds=0)
    assert summary["f1"] == pytest.approx(score)
    outcome = Outcome(asked, (0,), answer="yes it is")
    assert load_reward("rewards/f1.py").score([outcome]) == pytest.approx([score])


def test_musique_scores_the_best_of_answer_and_aliases():
    """By hand: 2 of 3 predicted tokens are 2 of the alias's 4, so P = 2/3, R = 1/2."""
    answers = ("Oslo", "city of Christiania Norway")
    assert f1("Christiania, Norway today", answers) == pytest.approx(4 / 7)
    assert exact_match("The City of Christiania, Norway", answers) == 1


def test_nq_open_takes_any_of_several_answers():
    answers = ("14 December 1972 UTC", "December 1972")
    assert exact_match("december, 1972", answers) == 1
    assert exact_match("1972", answers) == 0


def test_wizard_of_wikipedia_has_kilts_f1():
    """By hand: "blue", "is", "colour" are shared, of 4 predicted ("a" and "the" go) and 5."""
    score = f1("Blue is a nice colour", ["The colour of the sky is blue."])
    assert score == pytest.approx(2 * (3 / 4) * (3 / 5) / (3 / 4 + 3 / 5))


# --- selections ---------------------------------------------------------------------------------


def test_answer_recall_reads_the_first_k_documents():
    assert answer_recall(example(), (2, 0), 1) == 0
    assert answer_recall(example(), (2, 0), 2) == 1
    assert answer_recall(example(), (), 5) == 0
    assert answer_recall(example(answers=("Oslo", "lyon")), (0,), 5) == 1


def test_answer_recall_is_the_share_of_parts():
    two = example(answers=("Lyon and pilot",), parts=("Lyon", "pilot"))
    assert answer_recall(two, (0, 2), 5) == 0.5
    assert answer_recall(two, (0, 1), 1) == 0.5
    assert answer_recall(two, (0, 1), 2) == 1


@pytest.mark.parametrize(
    ("answer", "held"),
    [
        ("new york", True),  # the title counts, case does not
        ("U.S. state", True),
        ("U.S", True),  # punctuation marks are tokens
        ("US", False),
        ("York City", False),  # in another order
        ("stat", False),  # whole tokens
        ("York a", True),
        ("", False),
        ("yes", False),
    ],
)
def test_answers_are_matched_by_token_sequence(answer, held):
    assert answer_recall(example(answers=(answer,)), (3,), 1) == held


def test_answers_are_matched_whatever_the_unicode_form():
    composed, decomposed = "Caf\u00e9", "Cafe\u0301"
    documents = (Document("", f"At the {decomposed}."),)
    assert answer_recall(example(answers=(composed,), candidates=documents), (0,), 1) == 1
    assert answer_recall(example(answers=("Cafe",), candidates=documents), (0,), 1) == 0


def test_gold_recall_is_the_share_of_gold_candidates():
    assert gold_recall(example(), (2, 0)) == 0.5
    assert gold_recall(example(), (1, 3, 0)) == 1
    assert gold_recall(example(), ()) == 0
    assert gold_recall(example(candidates=CANDIDATES[2:]), (0,)) is None


# --- summary ------------------------------------------------------------------------------------


def test_summary_has_the_documented_keys():
    assert (
        list(summarise([evaluated(), evaluated()], iteration=3, seconds=1.5))
        == (
            "iteration questions em f1 recall@1 recall@3 recall@5 gold_recall bound bound_se "
            "effective_sample_size malformed selector_entropy seconds"
        ).split()
    )


def test_summary_averages_over_questions():
    wrong = evaluated(answer="Lyon town", documents=(2, 3), malformed=True)
    summary = summarise([evaluated(), wrong], iteration=3, seconds=1.5)
    assert (summary["iteration"], summary["questions"], summary["seconds"]) == (3, 2, 1.5)
    assert summary["em"] == 0.5
    assert summary["f1"] == pytest.approx((1 + 2 / 3) / 2)
    assert (summary["recall@1"], summary["recall@3"], summary["recall@5"]) == (0, 0.5, 0.5)
    assert summary["gold_recall"] == 0.25
    assert summary["malformed"] == 0.5


def test_bound_is_the_log_of_the_mean_likelihood():
    rows = [evaluated(log_likelihoods=lls) for lls in ((-1.0, -3.0), (-2.0, -2.0), (-5.0,))]
    bounds = [math.log((math.exp(-1) + math.exp(-3)) / 2), -2.0, -5.0]
    mean = sum(bounds) / 3
    deviation = math.sqrt(sum((b - mean) ** 2 for b in bounds) / 2)
    summary = summarise(rows, iteration=0, seconds=0)
    assert summary["bound"] == pytest.approx(mean)
    assert summary["bound_se"] == pytest.approx(deviation / math.sqrt(3))


def test_bound_and_sample_size_survive_tiny_likelihoods():
    summary = summarise([evaluated(log_likelihoods=(-2000.0, -2000.0))] * 2, iteration=0, seconds=0)
    assert summary["bound"] == pytest.approx(-2000)
    assert summary["effective_sample_size"] == pytest.approx(2)


def test_effective_sample_size_goes_from_one_to_m():
    def size(*log_likelihoods: float):
        row = evaluated(log_likelihoods=log_likelihoods)
        return summarise([row], iteration=0, seconds=0)["effective_sample_size"]

    assert size(-1.0, -1.0, -1.0, -1.0) == pytest.approx(4)
    assert size(-1.0, -90.0, -90.0, -90.0) == pytest.approx(1)
    weights = [math.exp(1) / (math.exp(1) + 1), 1 / (math.exp(1) + 1)]
    assert size(-1.0, -2.0) == pytest.approx(1 / sum(w * w for w in weights))


def test_selector_entropy_is_the_mean_surprise():
    rows = [evaluated(selector_logps=(-2.0, -4.0)), evaluated(selector_logps=(-1.0, -1.0))]
    assert summarise(rows, iteration=0, seconds=0)["selector_entropy"] == pytest.approx(2)


def test_what_is_undefined_is_none_and_not_a_number():
    no_gold = evaluated(example=example(candidates=CANDIDATES[2:]), documents=(0,))
    summary = summarise([no_gold], iteration=0, seconds=0)
    assert summary["gold_recall"] is None  # no question has gold candidates
    assert summary["bound_se"] is None  # one question has no spread
    assert summarise([no_gold, evaluated()], iteration=0, seconds=0)["gold_recall"] == 0.5


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_a_diverged_policy_is_named(bad):
    with pytest.raises(UserError, match=r"'q1'.*generator.learning_rate"):
        summarise([evaluated(log_likelihoods=(-1.0, bad))], iteration=0, seconds=0)
    with pytest.raises(UserError, match=r"'q1'.*selector.learning_rate"):
        summarise([evaluated(selector_logps=(bad,))], iteration=0, seconds=0)


def test_no_questions_is_an_error():
    with pytest.raises(UserError, match="no questions"):
        summarise([], iteration=0, seconds=0)
    with pytest.raises(UserError, match="'q1'"):
        summarise([evaluated(log_likelihoods=())], iteration=0, seconds=0)
