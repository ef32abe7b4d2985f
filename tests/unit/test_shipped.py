"""The recipes that the project carries say what they need, and copies of them work anywhere."""

import os
from pathlib import Path

import pytest
import yaml

from dro_rl.comparison.spec import load_comparison
from dro_rl.errors import UserError
from dro_rl.recipe_file import load_recipe
from dro_rl.shipped import copy_recipe, shipped_recipes
from tests.commands import ROOT, refused, run_here

pytestmark = pytest.mark.unit

RECIPES = {recipe.name: recipe for recipe in shipped_recipes()}


def test_every_recipe_says_what_it_shows_needs_and_takes():
    shipped = {str(p.relative_to(ROOT / "recipes")) for p in (ROOT / "recipes").rglob("*.yaml")}
    assert shipped == RECIPES.keys()
    for recipe in RECIPES.values():
        assert recipe.about and recipe.needs and recipe.takes, recipe.name
        is_comparison = "arms" in yaml.safe_load(recipe.path.read_text())
        assert recipe.command == ("compare" if is_comparison else "train")


@pytest.mark.parametrize("name", RECIPES)
def test_a_copy_means_the_same_from_anywhere(name, tmp_path, monkeypatch):
    load = load_recipe if RECIPES[name].command == "train" else load_comparison
    original = load(str(RECIPES[name].path), [])
    monkeypatch.chdir(tmp_path)
    copy = copy_recipe(name, Path("mine.yaml"))
    assert os.access(copy, os.X_OK)
    mine = load("./mine.yaml", [])
    if RECIPES[name].command == "train":
        assert mine == original
    else:
        assert [arm.shown for arm in mine.arms] == [arm.shown for arm in original.arms]


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "demo.yaml").write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        copy_recipe("demo", tmp_path)
    assert (tmp_path / "demo.yaml").read_text() == "mine"


def test_the_list_names_every_recipe(capsys):
    code, told, _ = run_here(capsys, "recipes")
    assert code == 0 and [name for name in RECIPES if f"{name}  (dro-rl " not in told] == []
    copied = run_here(capsys, "recipes", "copy", "nothing")
    refused(copied, "nothing: no recipe of the project", "demo.yaml")
