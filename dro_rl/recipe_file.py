"""Reading a recipe: YAML, `extends`, dotted overrides, and errors that name the key."""

from __future__ import annotations

import difflib
import os
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from dro_rl.errors import UserError
from dro_rl.jsonlines import located
from dro_rl.plain_yaml import NotPlain, read_plain
from dro_rl.recipe import Recipe
from dro_rl.redaction import holder_of, without_secrets
from dro_rl.resources import find_file


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a file, with `extends` merged and overrides applied.

    Args:
        name: a path, or the name of a recipe that the project carries.
        overrides: `section.key=value`; the value is read as YAML.
    Raises:
        UserError: missing or malformed file, unknown key, wrong type, contradictory settings.
    """
    path = find_file(name, "recipes")
    settings = read_settings(path)
    for override in overrides:
        apply_override(settings, override)
    return make_recipe(settings, str(path))


def make_recipe(settings: Mapping[str, Any], source: str) -> Recipe:
    """A checked recipe from plain settings; `source` is named in errors."""
    if "arms" in settings:
        raise UserError(f"{source}: is a comparison, not a recipe: dro-rl compare {source}")
    _refuse_secrets(settings, source)
    try:
        return Recipe.model_validate(settings)
    except ValidationError as error:
        lines = "\n".join(f"  {_explain(e)}" for e in error.errors())
        raise UserError(f"{source}: not a valid recipe:\n{lines}") from error


def _refuse_secrets(settings: Mapping[str, Any], source: str) -> None:
    """A recipe is written into run directories, and shown in reports."""
    name = holder_of(repr(settings))
    if name is not None:
        place = next((str(key) for key, value in settings.items() if holder_of(repr(value))), "it")
        raise UserError(
            f"{source}: {place}: holds the secret that is in {name}: recipes are kept in run "
            "directories and reports, so leave it in the environment"
        )


def read_settings(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A file's settings, with those of what it extends; `seen` are the files that extend it.

    Raises:
        UserError: it cannot be read, is not a mapping, or extends itself.
    """
    if path.resolve() in seen:
        raise UserError(f"{path}: extends itself: " + " -> ".join(map(str, (*seen, path))))
    try:
        settings = read_plain(path.read_text(encoding="utf-8"))
    except NotPlain as error:
        raise UserError(f"{path}{error.place}: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text: {error}") from error
    if not isinstance(settings, dict):
        raise UserError(f"{path}: a recipe is a mapping of sections (data, retrieval, selector...)")
    base = settings.pop("extends", None)
    if base is None:
        return settings
    if not isinstance(base, str):
        raise UserError(f"{path}: extends: must be the name of one recipe, not {base!r}")
    beside = path.parent / base
    parent = beside if os.path.isfile(beside) else find_file(base, "recipes")
    return merge(read_settings(parent, (*seen, path.resolve())), settings)


_OF_EVERY_KIND = {"algorithm": ("samples", "train"), "selector": ("documents",)}
_UNLESS_SAID_OTHERWISE = {"algorithm": "dro", "selector": "causal_lm"}
_SHORT = {"reward": "use"}  # the key that a section means which is text alone


def merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` wins, section by section; a section of another kind, or a reward of another name,
    replaces the base's, but for what means the same in every kind."""
    merged = dict(base)
    for key, value in over.items():
        old = _written_out(key, merged.get(key))
        if isinstance(old, dict) and isinstance(value, Mapping):
            tag = _SHORT.get(key, "kind")
            kind = value.get(tag)
            old_kind = old.get(tag, _UNLESS_SAID_OTHERWISE.get(key, kind))
            other_kind = tag in value and kind != old_kind
            kept = {k: old[k] for k in _OF_EVERY_KIND.get(key, ()) if other_kind and k in old}
            merged[key] = {**kept, **value} if other_kind else merge(old, value)
        else:
            merged[key] = value
    return merged


def _written_out(key: str, value: Any) -> Any:
    return {_SHORT[key]: value} if key in _SHORT and isinstance(value, str) else value


def apply_override(settings: dict[str, Any], override: str) -> None:
    """Set what `section.key=value` says, in place.

    Raises:
        UserError: it does not say that.
    """
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise UserError(f"override {override!r}: write section.key=value")
    try:
        value = read_plain(text)
    except NotPlain as error:
        raise UserError(f"override {override!r}: the value is not YAML: {error}") from error
    *path, last = key.strip().split(".")
    section = settings
    for name in path:
        section[name] = _written_out(name, section.get(name))
        if section[name] is None:
            section[name] = {}
        section = section[name]
        if not isinstance(section, dict):
            raise UserError(f"override {override!r}: {name} is not a section")
    section[last] = value


_SHOWN = 300  # characters of a bad value
_GONE = {
    "training.microbatch_size": "is now training.tokens_per_microbatch, in tokens, not questions",
    "rollout.batch_size": "is gone: an engine takes all questions in one call; leave it out",
}


def _explain(error: Any) -> str:
    """One validation error in words: the dotted key, what is wrong, the nearest known key."""
    keys = [str(k) for k in error["loc"]]
    if error["type"] == "extra_forbidden":
        dotted = ".".join([*_without_tags(keys[:-1]), keys[-1]])
        owners = [
            kind
            for member in _models_at(Recipe, _without_tags(keys[:-1]))
            if keys[-1] in member.model_fields and (kind := _kind(member))
        ]
        if dotted in _GONE:
            return f"{dotted}: {_GONE[dotted]}"
        if owners:
            return f"{dotted}: belongs to kind: {' or '.join(owners)}"
        known = _fields_at(Recipe, keys[:-1])
        near = difflib.get_close_matches(keys[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"
        return f"{dotted}: unknown key; {hint}"
    dotted = ".".join(_without_tags(keys)) or "recipe"
    if error["type"] == "missing":
        return f"{dotted}: is required"
    if error["type"].startswith("union_tag"):
        kinds = ", ".join(repr(_kind(m)) for m in _models_at(Recipe, keys))
        return f"{dotted}.kind: must be one of {kinds}"
    message = error["msg"].removeprefix("Value error, ")
    given = error.get("input")
    shown = "" if isinstance(given, dict | BaseModel) else f" (given: {_short(given)})"
    return f"{dotted}: {message}{shown}"


def _short(given: Any) -> str:
    shown = without_secrets(repr(given))
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."


def _without_tags(keys: Sequence[str]) -> list[str]:
    """Keys as the user wrote them: pydantic puts a union's tag or type into the location."""
    shown: list[str] = []
    for key in keys:
        if key in _fields_at(Recipe, shown) or key.isdigit():
            shown.append(key)
    return shown


def _fields_at(model: type[BaseModel], keys: Sequence[str]) -> list[str]:
    names: dict[str, None] = {}
    for found in _models_at(model, keys):
        names.update(dict.fromkeys(found.model_fields))
    return list(names)


def _models_at(model: type[BaseModel], keys: Sequence[str]) -> Iterable[type[BaseModel]]:
    """The models that may stand at a location: one, or the members of a union."""
    models = [model]
    for key in keys:
        inner = [
            m
            for owner in models
            if key in owner.model_fields
            for m in models_in(owner.model_fields[key].annotation)
        ]
        if inner:
            models = inner
            continue
        tagged = [m for m in models if _kind(m) == key]
        models = tagged or models
    return models


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models that a field may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated, list):
        return [m for part in typing.get_args(annotation) for m in models_in(part)]
    return []


def _kind(model: type[BaseModel]) -> str | None:
    field = model.model_fields.get("kind")
    return typing.get_args(field.annotation)[0] if field else None


def _make_absolute(section: dict[str, Any], key: str) -> None:
    """In place, where the key is there and names what exists."""
    name = section.get(key)
    if name and os.path.exists(located(name)):  # Path's own raises at long names
        section[key] = str(located(name).absolute())


def localise(recipe: Recipe) -> Recipe:
    """The recipe with its paths made absolute: other processes, and commands that read the run
    later, have working folders of their own."""
    settings = recipe.resolved()
    for section, key in (
        ("data", "path"),
        ("data", "evaluation_path"),
        ("data", "aliases_path"),
        ("retrieval", "corpus_path"),
    ):
        _make_absolute(settings[section], key)
    for searcher in (settings["retrieval"], *settings["retrieval"].get("of", ())):
        for key in ("model", "environment"):
            _make_absolute(searcher, key)
    for policy in recipe.policies:
        folder = located(settings[policy]["model"])
        if os.path.isdir(folder):
            settings[policy]["model"] = str(folder.absolute())
    rewards = recipe.reward if isinstance(recipe.reward, list) else [recipe.reward]
    own = settings["reward"]
    for reward, written in zip(rewards, own if isinstance(own, list) else [own], strict=True):
        if reward.is_file:
            written["use"] = str(find_file(reward.use, "rewards").absolute())
    settings["tracking"]["run_dir"] = str(located(recipe.tracking.run_dir).absolute())
    return Recipe.model_validate(settings)
