"""Asking a reward, and what it may return."""

from __future__ import annotations

import math
import sys
from bdb import BdbQuit
from collections.abc import Sequence
from numbers import Real
from typing import TypeGuard

from dro_rl.errors import UserError
from dro_rl.records import Outcome
from dro_rl.reward.base import Reward, Scale


def checked_scores(reward: Reward, outcomes: Sequence[Outcome]) -> list[float]:
    """The same as `usable_scores`; what the reward raises goes through with its traceback, once the
    example has been named."""
    try:
        return usable_scores(reward, outcomes)
    except (UserError, BdbQuit):  # who leaves the debugger knows where
        raise
    except Exception:
        told = f"reward {type(reward).__name__} raised on {_culprit(reward, outcomes)}"
        print(told, file=sys.stderr)
        raise


def usable_scores(reward: Reward, outcomes: Sequence[Outcome]) -> list[float]:
    """What a reward returns for the outcomes of any number of questions, on its own scale.

    Raises:
        UserError: wrong length, not a real number, not finite (but -inf, log 0, on a log scale), or
            negative on a linear scale; the example is named.
    """
    if not outcomes:
        return []
    name, values = type(reward).__name__, reward.score(outcomes)
    if not isinstance(values, list) or len(values) != len(outcomes):
        got = f"{len(values)} values" if isinstance(values, list) else type(values).__name__
        raise UserError(
            f"reward {name}, {_places(outcomes)}: score() must return a list of {len(outcomes)} "
            f"numbers, one an outcome, and returned {got}"
        )
    for value, outcome in zip(values, outcomes, strict=True):
        _check(value, reward.scale, f"reward {name}, {place_of(outcome)}: score()")
    return [float(v) for v in values]


def checked_log_rewards(reward: Reward, outcomes: Sequence[Outcome]) -> list[float]:
    """The same as log-rewards [nats]; -inf where the reward is 0."""
    return [as_scale(v, reward.scale, "log") for v in checked_scores(reward, outcomes)]


def as_scale(value: float, scale: Scale, wanted: Scale) -> float:
    """A score on another scale: r = exp(log r).

    Raises:
        OverflowError: r has no place in a float.
    """
    if scale == wanted:
        return value
    if wanted == "linear":
        return math.exp(value)
    return math.log(value) if value > 0 else -math.inf


def _check(value: object, scale: Scale, who: str) -> None:
    if scale == "log" and isinstance(value, Real) and float(value) == -math.inf:
        return  # a reward of 0
    if not is_finite(value):
        raise UserError(f"{who} returned {value!r}, which is not a finite number")
    if scale == "linear" and value < 0:
        raise UserError(
            f"{who} returned {value!r}; a linear reward must not be negative "
            '(use scale = "log", or shift it)'
        )


def is_finite(value: object) -> TypeGuard[Real]:
    """Whether it is a number that a float can hold; a switch is none."""
    try:
        return (
            not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(float(value))
        )
    except OverflowError:  # an integer of hundreds of digits
        return False


def _culprit(reward: Reward, outcomes: Sequence[Outcome]) -> str:
    """The first outcome that the reward raises on when it is alone."""
    for outcome in outcomes if len(outcomes) > 1 else ():
        try:
            reward.score([outcome])
        except Exception:
            return place_of(outcome)
    return _places(outcomes)


def place_of(outcome: Outcome) -> str:
    """An outcome for messages."""
    shown = " > ".join(f"[{i + 1}]" for i in outcome.documents)
    return f"example {outcome.example.id} (selection {shown or 'of no document'})"


def _places(outcomes: Sequence[Outcome]) -> str:
    ids = list(dict.fromkeys(o.example.id for o in outcomes))
    if len(ids) == 1:
        return f"example {ids[0]}"
    return f"examples {', '.join(ids[:3])}{', ...' if len(ids) > 3 else ''}"
