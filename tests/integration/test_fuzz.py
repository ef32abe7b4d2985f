"""Whatever comes from outside ends in a result or in one clear message. benchmarks/fuzz.py runs
more of the same."""

from __future__ import annotations

import pytest

from dro_rl.errors import UserError
from tests.fuzz_targets import TARGETS
from tests.fuzzing import Tally, Target, drive

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_a_case_ends_in_a_result_or_a_clear_message(target: Target, tmp_path):
    tally = Tally()
    drive(target, target.cases_in_ci, tmp_path, tally)
    assert tally.results  # not all of the cases are bad
    assert tally.refused or target.name == "selections"  # nor all good; any text is a selection


FOUND = [
    # what fuzzing found once: the target, and its case
    ("data files", ("jsonl", "json", b'[{"id": "a", "question": ["\xed\xa0\x80"]}]')),
]


@pytest.mark.parametrize(("name", "case"), FOUND)
def test_what_was_found_once_is_not_found_again(name, case, tmp_path):
    (target,) = (target for target in TARGETS if target.name == name)
    with pytest.raises(UserError):
        target.run(tmp_path, case)
