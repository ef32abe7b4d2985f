"""Which questions an iteration takes, and the order of their candidates."""

import pytest

from dro_rl.questions import questions_of
from dro_rl.recipe import Recipe
from dro_rl.records import Document, Example

pytestmark = pytest.mark.unit

TRAIN = [
    Example(
        f"q{i}",
        "who?",
        ("yes",),
        tuple(Document(f"t{j}", "") for j in range(8)),
        scores=tuple(float(j) for j in range(8)),
    )
    for i in range(6)
]


def recipe(**retrieval) -> Recipe:
    policy = {"model": "m"}
    return Recipe.model_validate(
        {
            "data": {"kind": "facts"},
            "retrieval": {"kind": "given", "candidates": 8, **retrieval},
            "selector": policy,
            "generator": policy,
            "training": {"questions_per_iteration": 4},
        }
    )


def test_every_question_is_seen_equally_often():
    seen = [e.id for iteration in range(1, 7) for e in questions_of(recipe(), TRAIN, iteration)]
    assert sorted(seen) == sorted(e.id for e in TRAIN for _ in range(4))
    assert sorted(seen[:6]) == sorted(e.id for e in TRAIN)


def test_an_epoch_has_an_order_of_candidates_of_its_own():
    orders = {}
    for iteration in range(1, 10):  # six epochs
        for example in questions_of(recipe(), TRAIN, iteration):
            assert sorted(example.scores) == [float(j) for j in range(8)]
            # A score stays with its document.
            assert [f"t{s:.0f}" for s in example.scores] == [d.title for d in example.candidates]
            orders.setdefault(example.id, []).append(example.scores)
    for example in TRAIN:
        assert orders[example.id][0] == example.scores  # as retrieved, in the first
        assert len(set(orders[example.id])) == 6
    assert questions_of(recipe(), TRAIN, 5) == questions_of(recipe(), TRAIN, 5)


def test_an_order_depends_on_the_question_alone():
    def orders(train, iterations):
        found = {}
        for iteration in iterations:
            for example in questions_of(recipe(), train, iteration):
                found.setdefault(example.id, []).append(example.scores)
        return found

    of_all = orders(TRAIN, range(1, 10))  # six epochs of six
    of_four = orders(TRAIN[:4], range(1, 7))  # six epochs of four
    assert {id: of_all[id] for id in of_four} == of_four


@pytest.mark.parametrize("iteration", [1, 4, 9])
def test_the_retrievers_order_can_be_kept(iteration):
    for example in questions_of(recipe(shuffle=False), TRAIN, iteration):
        assert example.scores == TRAIN[0].scores
