"""How questions are divided among engines."""

import random

import pytest

from dro_rl.questions import shares
from dro_rl.records import Document, Example

pytestmark = pytest.mark.unit


def example(number: int, characters: int) -> Example:
    return Example(f"q{number}", "?", ("yes",), (Document("", "x" * (characters - 1)),))


def sizes(parts) -> list[int]:
    return [sum(1 + len(e.candidates[0].text) for e in part) for part in parts]


@pytest.mark.parametrize("workers", [1, 2, 3, 7, 20])
def test_parts_keep_the_order_and_have_about_equally_much_to_read(workers):
    draw = random.Random(workers)
    examples = [example(n, draw.choice((10, 20, 300))) for n in range(100)]
    parts = shares(examples, workers)
    assert [e for part in parts for e in part] == examples and len(parts) == workers
    longest = max(sizes([[e] for e in examples]))
    assert all(abs(size - sum(sizes(parts)) / workers) <= longest for size in sizes(parts))


def test_one_engine_takes_the_long_questions_and_another_the_many():
    examples = [*(example(n, 1000) for n in range(10)), *(example(n, 100) for n in range(100))]
    assert [len(part) for part in shares(examples, 2)] == [10, 100]


def test_no_part_is_empty_beside_a_question_longer_than_all_others():
    examples = [example(n, size) for n, size in enumerate((1, 1, 1, 500))]
    assert [len(part) for part in shares(examples, 3)] == [2, 1, 1]
    assert [len(part) for part in shares(examples[::-1], 3)] == [1, 1, 2]


def test_fewer_parts_than_engines_where_there_are_fewer_questions():
    assert [len(p) for p in shares([example(0, 5), example(1, 5)], 4)] == [1, 1]
    assert shares([], 4) == []
