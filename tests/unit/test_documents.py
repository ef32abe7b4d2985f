"""README and docs: every command exists with its options, files and settings, those that are cheap
are run, every link leads somewhere, and the list of recipes is that of the recipes."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from dro_rl.cli import app
from dro_rl.comparison.spec import load_comparison
from dro_rl.recipe_file import load_recipe, read_settings
from dro_rl.shipped import shipped_recipes
from tests.documents import OURS, PAGES, RECIPES, ROOT, Command, commands

pytestmark = pytest.mark.unit

ALL = commands()
COMMANDS = typer.main.get_command(app)
TESTED = [c for c in ALL if c.program in OURS]
OTHERS = {"ray", "docker", "pip", "pre-commit", "tensorboard"}  # in test_other_programs.py
SHELL = {"git", "cd", "source"}
YOURS = {"my.yaml", "recipes/my.yaml", "brevity.yaml"}  # files that a page has its reader make
NUMBERS = {"N": "1", "GIB": "80"}
CHEAP = [c for c in TESTED if c.whole and c.words[1:2] in (("check",), ("recipes",))]
CHEAP = [c for c in CHEAP if not YOURS.intersection(c.words) or "copy" in c.words]


def test_every_command_is_ours_or_known_not_to_be():
    assert {c.program for c in ALL} - {*OURS} <= OTHERS | SHELL
    tested = [c for c in ALL if c.program not in SHELL]
    assert len(tested) > 200
    print(f"\ncommands of README, docs and recipes: {len(tested)} of {len(ALL)} tested")


@pytest.mark.parametrize("command", [c for c in TESTED if c.program == "dro-rl"], ids=str)
def test_a_dro_rl_command_exists_with_its_options_recipe_and_settings(command):
    context = _parsed(command)
    if context is None:
        return
    given = context.params
    recipe, overrides = given.get("recipe") or given.get("file"), given.get("overrides") or []
    if isinstance(recipe, Path):  # which the command writes
        return
    if recipe is None or _is_placeholder(recipe) or recipe in YOURS:
        for override in overrides:
            assert _is_setting(override.partition("=")[0]), override
    elif "arms" in read_settings(ROOT / "recipes" / str(recipe).removeprefix("recipes/")):
        assert context.command.name == "compare"
        load_comparison(recipe, overrides)
    else:
        assert context.command.name != "compare"
        load_recipe(recipe, [o for o in overrides if not _names_yours(o)])


@pytest.mark.parametrize(
    "text",
    [
        "dro-rl trian recipes/demo.yaml",
        "dro-rl train recipes/demo.yaml --resme RUN",
        "dro-rl train recipes/demo.yaml trainig.iterations=2",
        "dro-rl train recipes/dem.yaml",
        "dro-rl train recipes/compare_demo.yaml",
        "dro-rl compare recipes/demo.yaml",
        "dro-rl evaluate RUN --data",
        "dro-rl retriever serve my.yaml --prt 8100",
        "dro-rl check RECIPE algorithm.smples=3",
        "dro-rl export RUN",
    ],
)
def test_that_test_would_find_what_is_wrong(text):
    words = tuple(text.split())
    with pytest.raises(Exception):  # noqa: B017
        test_a_dro_rl_command_exists_with_its_options_recipe_and_settings(
            Command("page", text, words, whole=True)
        )


@pytest.mark.parametrize("command", CHEAP, ids=str)
def test_a_cheap_command_runs(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    try:
        app([*command.words[1:]], standalone_mode=False)
    except SystemExit as end:
        assert end.code in (None, 0)
    assert capsys.readouterr().out


@pytest.mark.parametrize("command", [c for c in TESTED if c.program == "make"], ids=str)
def test_a_make_command_has_a_target(command):
    text = (ROOT / "Makefile").read_text()
    variables = dict(w.split("=", 1) for w in command.words[1:] if "=" in w)
    (target,) = [w for w in command.words[1:] if "=" not in w]
    assert re.search(rf"^{target}:.*## ", text, re.M)
    assert variables.keys() <= {"ARGS", "DEVICE", "PYTHON", "UPGRADE"}
    if target == "demo":
        load_recipe("demo.yaml", variables.get("ARGS", "").split())


@pytest.mark.parametrize(
    "command", [c for c in TESTED if c.program in ("python", "pytest")], ids=str
)
def test_a_script_is_there_with_its_options(command):
    files = [w.partition("::")[0] for w in command.words[1:] if w.endswith(".py") or "::" in w]
    assert all((ROOT / name).is_file() for name in files)
    if command.program == "python":
        source = (ROOT / files[0]).read_text()
        assert all(w in source for w in command.words if w.startswith("--"))


def _parsed(command: Command) -> Any:
    """The context that the command line makes of it; None where a sentence names no arguments."""
    group: Any = COMMANDS
    words = [NUMBERS.get(w, w) for w in command.words[1:] if w not in ("...", "--help")]
    while words and hasattr(group, "commands"):
        if words[0].startswith("-"):
            assert any(words[0] in option.opts for option in group.params), command
            return None
        if words[0] not in group.commands and "run" in group.commands:
            words = ["run", *words]  # `reward FILE` is `reward run FILE`
        assert words[0] in group.commands, f"no such command: {command}"
        group = group.commands[words[0]]
        words = words[1:]
    if not words and hasattr(group, "commands"):
        return None
    try:
        return group.make_context(group.name, words)
    except typer.BadParameter as error:
        if command.whole or type(error).__name__ != "MissingParameter":
            raise
        return None


def _is_placeholder(name: str) -> bool:
    return name.isupper() or name.endswith("/...")


def _names_yours(override: str) -> bool:
    """A file that the page has its reader write is not there."""
    return any(f"rewards/{name}" in override for name in ("brevity.py", "reciprocal_rank.py"))


def _is_setting(key: str) -> bool:
    from dro_rl.recipe import Recipe
    from dro_rl.recipe_file import _fields_at

    *path, last = key.split(".")
    return last in _fields_at(Recipe, path)


# --- links ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), target
        if anchor:
            assert anchor in _anchors(path), target


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ +(.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def test_the_site_has_every_page_and_its_links_stay_inside(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import docs_hook

    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    shown = set(_leaves(settings["nav"]))
    images = {f"images/{p.name}" for p in (ROOT / "docs" / "images").iterdir()}
    pages = {p.name for p in (ROOT / "docs").glob("*.md")} | {*docs_hook.FROM_ELSEWHERE.values()}
    assert shown <= pages
    assert {page for page in pages if "/" not in page} == shown
    for source, page in {
        **{f"docs/{p.name}": p.name for p in (ROOT / "docs").glob("*.md")},
        **docs_hook.FROM_ELSEWHERE,
    }.items():
        text = docs_hook.for_the_site((ROOT / source).read_text(), page)
        text = re.sub(r"^ *```.*?^ *```", "", text, flags=re.M | re.S)
        for target in re.findall(r"\]\(([^)\s#]+)", text):
            inside = os.path.normpath(os.path.join(os.path.dirname(page), target))
            assert "://" in target or inside in pages | images, f"{page}: {target}"


def _leaves(nav: object) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    parts: Sequence[object] = list(nav.values()) if isinstance(nav, dict) else list(nav)  # type: ignore[call-overload]
    return [leaf for part in parts for leaf in _leaves(part)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_has_no_conflict_of_a_merge(page):
    assert not re.findall(r"^(?:<{7} |={7}$|>{7} ).*", page.read_text(), re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_code_and_settings_of_a_page_can_be_read(page):
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(), re.M | re.S):
        if language == "python" and page.name != "extending.md":  # which is run
            compile(block, str(page), "exec")
        elif language == "json":
            json.loads(block)


# --- recipes --------------------------------------------------------------------------------------


def test_the_list_of_recipes_is_that_of_the_recipes():
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (ROOT / "docs" / "recipes.md").read_text().splitlines()
        if line.startswith("| `")
    ]
    listed = {name.strip("`"): (needs, takes) for name, _, needs, takes, _ in rows}
    assert listed == {r.name: (r.needs, r.takes) for r in shipped_recipes()}
    assert len(rows) == len(RECIPES)
    for name, _, _, takes, expected in rows:
        assert (takes == "not yet run") == (expected == "not yet run"), name
