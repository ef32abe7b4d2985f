"""Arms may differ in what is compared, and in nothing else: questions, budget, initial policies."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dro_rl.errors import UserError
from dro_rl.recipe import Recipe

# Step sizes suit a loss: one that is best for likelihood weights need not suit a policy gradient.
COMPARED = ("algorithm", "reward", "selector.learning_rate", "generator.learning_rate")
PLACE = ("tracking.run_dir",)
_BUDGET = ("algorithm.samples", "training.questions_per_iteration", "training.iterations")


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted key; lists stay whole."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{dotted}."))
        else:
            flat[dotted] = value
    return flat


def differing(settings: Iterable[Mapping[str, Any]]) -> list[str]:
    """The dotted keys that are not the same in all of them, in the settings' own order."""
    flats = [flatten(one) for one in settings]
    keys = dict.fromkeys(key for flat in flats for key in flat)
    return [k for k in keys if any(k not in f or f[k] != flats[0].get(k) for f in flats)]


def covered(key: str, prefixes: Iterable[str]) -> bool:
    """Whether a dotted key is one of the prefixes or below one."""
    return any(key == p or key.startswith(f"{p}.") for p in prefixes)


def check_fair(arms: Mapping[str, Recipe], may_differ: Sequence[str], source: str) -> None:
    """Refuse arms that differ in more than they may, or draw different numbers of selections.

    Raises:
        UserError: naming the arm, the key and both values; or a prefix of `may_differ` that is no
            setting of any arm.
    """
    settings = {name: recipe.resolved() for name, recipe in arms.items()}
    _check_prefixes(may_differ, settings.values(), source)
    first, *others = arms
    for other in others:
        ours, theirs = flatten(settings[first]), flatten(settings[other])
        for key in differing((settings[first], settings[other])):
            if not covered(key, (*COMPARED, *PLACE, *may_differ)):
                raise UserError(
                    f"{source}: arm {other} has {key}: {theirs.get(key)!r}, and {first} has "
                    f"{ours.get(key)!r}: arms may differ in {', '.join(COMPARED)} and what "
                    "may_differ lists. Make them equal, or list the key there"
                )
        if _drawn(arms[first]) == _drawn(arms[other]):
            continue
        for key in _BUDGET:
            if ours[key] != theirs[key] and not covered(key, may_differ):
                raise UserError(
                    f"{source}: arm {other} draws {_in_words(arms[other])} selections, and {first} "
                    f"{_in_words(arms[first])}: give both the same {key}, or the same product, or "
                    f"list {key} in may_differ"
                )


def _check_prefixes(
    may_differ: Sequence[str], settings: Iterable[Mapping[str, Any]], source: str
) -> None:
    keys = {key for one in settings for key in flatten(one)}
    known = {".".join(k.split(".")[:i]) for k in keys for i in range(1, k.count(".") + 2)}
    for prefix in may_differ:
        if prefix not in known:
            near = difflib.get_close_matches(prefix, sorted(known), n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"{source}: may_differ: {prefix} is no setting of these arms{hint}")


def _drawn(recipe: Recipe) -> tuple[int, bool]:
    """Selections of the whole run; per question of the data where an iteration takes all."""
    size = recipe.training.questions_per_iteration
    count = recipe.algorithm.samples * recipe.training.iterations
    return (count, True) if size == "all" else (count * size, False)


def _in_words(recipe: Recipe) -> str:
    size, iterations = recipe.training.questions_per_iteration, recipe.training.iterations
    return f"{recipe.algorithm.samples} a question x {size} questions x {iterations} iterations of"
