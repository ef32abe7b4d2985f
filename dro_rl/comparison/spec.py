"""The comparison file: named arms, each a recipe with changes, and the seeds they are run with."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError, field_validator

from dro_rl.comparison.fairness import check_fair
from dro_rl.errors import UserError
from dro_rl.recipe import Recipe, Section
from dro_rl.recipe_file import apply_override, localise, make_recipe, merge, read_settings
from dro_rl.resources import find_file

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_RESERVED = ("figures", "report.md", "results.csv")  # files of the output folder
_OWN = ("seeds", "output")  # what overrides may change of the comparison itself
_SET_BY_US = {"training.seed": "seeds", "tracking.run_dir": "output"}

Seed = Annotated[int, Field(strict=True, ge=0, le=2**31 - 1)]
Settings = dict[str, Any]


class ComparisonFile(Section):
    """What a comparison file may say."""

    base: str | None = Field(default=None, description="the recipe of arms that name none")
    settings: Settings = Field(default={}, description="merged over every arm's recipe")
    seeds: list[Seed] = Field(min_length=1, description="training.seed of each run")
    output: str = Field(description="folder; OUTPUT/ARM/seed-S are run directories")
    may_differ: list[str] = Field(
        default=[], description="dotted prefixes of further settings in which arms may differ"
    )
    arms: dict[str, Settings] = Field(
        min_length=1, description="changes to the recipe by arm; the first is compared with"
    )

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) != len(seeds):
            raise ValueError("a seed is there twice")
        return seeds

    @field_validator("arms", mode="before")
    @classmethod
    def _names(cls, arms: Any) -> Any:
        for name in arms if isinstance(arms, dict) else ():
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                raise ValueError(
                    f"the arm's name {name!r} must be text of letters, digits, '-', '_' and '.', "
                    "and begin with a letter or digit (quote it if it is a number)"
                )
            if name in _RESERVED:
                raise ValueError(f"the report itself needs the name {name!r}: rename that arm")
        return arms


@dataclass(frozen=True)
class Arm:
    """A name and what it runs; `recipe` has the seed and the place of no run in particular."""

    name: str
    recipe: Recipe
    shown: Settings  # the resolved recipe with paths as the user wrote them


@dataclass(frozen=True)
class Comparison:
    """A checked comparison: the first arm is what the others are compared with."""

    path: Path
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    output: Path


def load_comparison(name: str, overrides: Sequence[str] = ()) -> Comparison:
    """The comparison in a file, all its arms resolved and found to be comparable.

    Args:
        name: a path, or the name of a file beside the project's recipes.
        overrides: `seeds=[0]`, `output=...`, or settings of every arm's recipe.
    Raises:
        UserError: missing or malformed file, unknown key, an arm's recipe that is not valid, or
            arms that differ in what they must share.
    """
    path = find_file(name, "recipes")
    settings = read_settings(path)
    if "data" in settings and "arms" not in settings:
        raise UserError(f"{path}: is a recipe, not a comparison: dro-rl train {path}")
    _refuse_doubles(path)
    own = [o for o in overrides if o.partition("=")[0].strip() in _OWN]
    for override in own:
        apply_override(settings, override)
    file = _checked(settings, path)
    changes = [o for o in overrides if o not in own]
    for source, part in _parts(file, changes):
        _refuse_ours(source, part)
    arms = tuple(_arm(path, file, arm, changes) for arm in file.arms)
    check_fair({arm.name: arm.recipe for arm in arms}, file.may_differ, str(path))
    output = Path(file.output).expanduser().absolute()
    return Comparison(path, arms, tuple(file.seeds), output)


def _checked(settings: Settings, path: Path) -> ComparisonFile:
    try:
        return ComparisonFile.model_validate(settings)
    except ValidationError as error:
        lines = "\n".join(f"  {_explain(e)}" for e in error.errors())
        raise UserError(f"{path}: not a valid comparison:\n{lines}") from error


def _explain(error: Any) -> str:
    """One validation error in words, as those of recipes."""
    dotted = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        known = list(ComparisonFile.model_fields)
        near = difflib.get_close_matches(dotted, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"
        return f"{dotted}: unknown key; {hint}"
    if error["type"] == "missing":
        return f"{dotted}: is required"
    given = error["input"]
    shown = "" if isinstance(given, dict) else f" (given: {given!r})"
    return f"{dotted or 'comparison'}: {error['msg'].removeprefix('Value error, ')}{shown}"


def _refuse_doubles(path: Path) -> None:
    """PyYAML silently takes the last of two arms with one name."""
    root = yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader)
    arms = [v for k, v in root.value if k.value == "arms"] if root else []
    for node in (root, *arms):
        names = [k.value for k, _ in node.value] if isinstance(node, yaml.MappingNode) else []
        for twice in {n for n in names if names.count(n) > 1}:
            raise UserError(f"{path}: {twice} is there twice")


def _parts(file: ComparisonFile, changes: Sequence[str]) -> list[tuple[str, Settings]]:
    """Everything that changes recipes, with its place in words."""
    overridden: Settings = {}
    for change in changes:
        apply_override(overridden, change)
    arms = [(f"arm {name}", settings) for name, settings in file.arms.items()]
    return [("settings", file.settings), *arms, ("overrides", overridden)]


def _refuse_ours(source: str, settings: Settings) -> None:
    for dotted, instead in _SET_BY_US.items():
        section, key = dotted.split(".")
        values = settings.get(section)
        if isinstance(values, Mapping) and key in values:
            raise UserError(f"{source}: {dotted} is set run by run; give {instead} instead")


def _arm(path: Path, file: ComparisonFile, name: str, overrides: Sequence[str]) -> Arm:
    changes = dict(file.arms[name])
    base = changes.pop("recipe", file.base)
    source = f"{path}, arm {name}"
    if base is None:
        raise UserError(f"{source}: names no recipe, and there is no base")
    if not isinstance(base, str):
        raise UserError(f"{source}: recipe: must be the name of one recipe, not {base!r}")
    beside = path.parent / base
    settings = read_settings(beside if beside.is_file() else find_file(base, "recipes"))
    # Overrides are set in place, and merging shares what it does not change.
    settings = copy.deepcopy(merge(merge(settings, file.settings), changes))
    for override in overrides:
        apply_override(settings, override)
    recipe = make_recipe(settings, source)
    return Arm(name, localise(recipe), recipe.resolved())
