"""What the shell offers on <TAB>: recipes, and settings with the sections that they are in."""

from __future__ import annotations

import glob
import os
import typing


def recipe_names(incomplete: str) -> list[str]:
    """Recipe files and folders that begin so, and the project's own recipes by name."""
    from dro_rl.shipped import shipped_recipes

    found = glob.glob(glob.escape(incomplete) + "*")
    here = [f"{name}/" if os.path.isdir(name) else name for name in found]
    files = [name for name in here if name.endswith((".yaml", "/"))]
    known = [recipe.name for recipe in shipped_recipes() if recipe.name.startswith(incomplete)]
    return sorted({*files, *known})


def settings(incomplete: str) -> list[str]:
    """Settings that begin so: `section.` until it is complete, then `section.key=`."""
    from dro_rl.recipe import Recipe
    from dro_rl.recipe_file import models_in

    *sections, _ = incomplete.split(".")
    models = [Recipe]
    for section in sections:
        fields = [m.model_fields[section] for m in models if section in m.model_fields]
        models = [inner for field in fields for inner in models_in(field.annotation)]
    offered = set()
    for model in models:
        for key, field in model.model_fields.items():
            one = typing.get_origin(field.annotation) is not list
            end = "." if one and models_in(field.annotation) else "="
            offered.add(".".join([*sections, key]) + end)
    return sorted(key for key in offered if key.startswith(incomplete))
