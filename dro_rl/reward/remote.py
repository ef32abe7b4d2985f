"""A reward behind an address: `reward: http://...`."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import PositiveFloat, PositiveInt

from dro_rl.errors import UserError
from dro_rl.records import Outcome
from dro_rl.remote import post_json
from dro_rl.reward.base import Need, Reward, Scale
from dro_rl.reward.checks import is_finite, place_of
from dro_rl.reward.wire import to_request


class RemoteReward(Reward):
    """Scores by a server that `dro-rl reward serve` or anything else that speaks its JSON runs.

    A request without questions tells its scale and needs. Several questions go in one call.

    Args:
        url: of the endpoint.
        timeout: of one call [s].
        attempts: of one call, when the server is busy, broken or cannot be reached.
    Raises:
        UserError: the server does not answer, or not as it should.
    """

    remote = True

    def __init__(self, url: str, timeout: PositiveFloat = 60, attempts: PositiveInt = 4) -> None:
        self.url, self.timeout, self.attempts = url, timeout, attempts
        about = self._ask([])
        scale: Any = about.get("scale")
        needs = about.get("needs")
        if scale not in get_args(Scale):
            raise self._unusable(f'its scale is {scale!r}, neither "log" nor "linear"')
        if not isinstance(needs, list) or not all(n in get_args(Need) for n in needs):
            raise self._unusable(
                f'its needs are {needs!r}, not a list of "likelihood" and "answer"'
            )
        self.scale, self.needs = scale, tuple(needs)

    def score(self, outcomes: Sequence[Outcome]) -> list[float]:
        groups = [list(g) for _, g in itertools.groupby(outcomes, lambda o: id(o.example))]
        scores = self._ask(outcomes).get("scores")
        if not isinstance(scores, list) or len(scores) != len(groups):
            raise self._unusable(f"scores must be {len(groups)} lists, one a question", scores)
        found = []
        for group, row in zip(groups, scores, strict=True):
            if not isinstance(row, list) or len(row) != len(group):
                raise self._unusable(
                    f"example {group[0].example.id}: scores must be {len(group)} numbers, one a "
                    "selection",
                    row,
                )
            found += [self._number(v, o) for v, o in zip(row, group, strict=True)]
        return found

    def _number(self, value: Any, outcome: Outcome) -> float:
        if value == "-inf":
            return -float("inf")
        if not is_finite(value):
            raise self._unusable(f"{place_of(outcome)}: a score must be a finite number", value)
        return float(value)

    def _ask(self, outcomes: Sequence[Outcome]) -> Mapping[str, Any]:
        reply = post_json(
            self.url,
            to_request(outcomes).model_dump(),
            setting="reward",
            timeout=self.timeout,
            attempts=self.attempts,
        )
        if not isinstance(reply, dict):
            raise self._unusable("it must be an object with scale, needs and scores", reply)
        return reply

    def _unusable(self, told: str, got: object = None) -> UserError:
        shown = f", and it sent {str(got)[:200]}" if got is not None else ""
        return UserError(f"reward {self.url}: not the reply of a reward server: {told}{shown}")
