"""`dro-rl new` writes recipes that `dro-rl check` passes, and overwrites nothing."""

from __future__ import annotations

import errno
import os
from itertools import product
from pathlib import Path

import pytest

from dro_rl.cli import app
from dro_rl.errors import UserError
from dro_rl.estimate import in_words, memory_in_words
from dro_rl.new_recipe import write_recipe
from dro_rl.recipe_file import load_recipe
from tests.commands import dro_rl

pytestmark = pytest.mark.unit

QWEN = "Qwen/Qwen2.5-1.5B-Instruct"
KINDS = ("hotpotqa", "musique", "wikimultihop", "natural_questions", "wizard_of_wikipedia", "dro")
DATA = ("facts", "mine.jsonl", *(f"{kind}:somewhere" for kind in KINDS))
HARDWARE = ("cpu", "1x24", "1x80", "2x40", "8x80", "16x80")
GPUS = {"1x24": (1, 24.0), "1x80": (1, 80.0), "2x40": (2, 40.0), "8x80": (8, 80.0)}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.jsonl").write_text("{}\n")
    return tmp_path


@pytest.mark.parametrize(
    ("data", "model", "hardware"),
    [("facts", "builtin", "cpu"), *product(DATA, ("scratch", QWEN), HARDWARE)],
)
def test_every_combination_is_a_recipe_that_means_what_was_asked(data, model, hardware):
    commands = write_recipe(Path("mine.yaml"), data, model, hardware)
    recipe = load_recipe("mine.yaml")
    assert in_words(recipe) and memory_in_words(recipe, GPUS.get(hardware))
    kind, _, place = data.partition(":")
    assert recipe.data.kind == (kind if place or kind == "facts" else "jsonl")
    assert recipe.tracking.run_dir == "runs/mine"
    if model == "builtin":
        assert recipe.selector.model == "builtin/facts-selector"
    else:
        for policy in (recipe.selector, recipe.generator):
            assert policy.init == model and policy.model.startswith("runs/mine-warmup/")
        assert "dro-rl warmup mine.yaml" in commands
    if model == QWEN:
        assert recipe.selector.dtype == ("float32" if hardware == "cpu" else "bfloat16")
        assert recipe.shares_base == (hardware not in ("8x80", "16x80"))


@pytest.mark.parametrize("hardware", GPUS)
def test_a_model_of_a_billion_parameters_fits(hardware):
    write_recipe(Path("mine.yaml"), "mine.jsonl", QWEN, hardware)
    told = "\n".join(memory_in_words(load_recipe("mine.yaml"), GPUS[hardware]))
    assert "fits" in told and "DOES NOT FIT" not in told and "nothing to do" not in told


def test_it_is_written_out_with_comments_and_can_be_run(folder):
    write_recipe(folder / "mine.yaml", "mine.jsonl", "scratch", "cpu")
    text = (folder / "mine.yaml").read_text()
    assert text.startswith("#!/usr/bin/env -S dro-rl train\n# mine.jsonl with scratch on cpu.\n")
    assert "extends" not in text and "&id" not in text
    assert "# docs/rewards.md" in text and "path: mine.jsonl" in text
    assert os.access(folder / "mine.yaml", os.X_OK)


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        (("mine.jsonl", "builtin", "cpu"), "--model builtin can read --data facts alone"),
        (("hotpot.json", "scratch", "cpu"), "--data hotpot.json: give facts"),
        (("squad:x.json", "scratch", "cpu"), "--data squad:x.json: give facts"),
        (("other.jsonl", "scratch", "cpu"), "--data other.jsonl: there is no file other.jsonl"),
        (("hotpotqa:a.json", "scratch", "cpu"), "there is no file a.json"),
        (("facts", "builtin", "two"), "--hardware two: give cpu, or GPUs"),
        (("facts", "builtin", "0x80"), "--hardware 0x80: give cpu, or GPUs"),
    ],
)
def test_answers_that_make_no_sense(answers, told, folder):
    with pytest.raises(UserError) as error:
        write_recipe(Path("new.yaml"), *answers)
    assert told in str(error.value)
    assert not (folder / "new.yaml").exists()


def test_a_missing_folder_is_made_and_nothing_is_left_half_written(folder, monkeypatch):
    write_recipe(folder / "of" / "mine" / "first.yaml", "facts", "builtin", "cpu")
    assert load_recipe("of/mine/first.yaml").tracking.run_dir == "runs/first"
    with pytest.raises(UserError, match="mine.jsonl/new.yaml: cannot be written"):
        write_recipe(folder / "mine.jsonl" / "new.yaml", "facts", "builtin", "cpu")

    def full(*names: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match="No space left"):
        write_recipe(folder / "of" / "mine" / "second.yaml", "facts", "builtin", "cpu")
    assert os.listdir(folder / "of" / "mine") == ["first.yaml"]


def test_the_command(folder, capsys):
    place = folder / "mine.yaml"
    words = ("new", str(place), "--data", str(folder / "mine.jsonl"), "--model", "scratch")
    dro_rl(*words).refused("--hardware: there is no terminal to ask on")
    assert not place.exists()
    app([*words, "--hardware", "cpu"], standalone_mode=False)
    told = capsys.readouterr().out
    assert f"written: {place}" in told and f"dro-rl check {place}\n" in told
    before = place.read_bytes()
    with pytest.raises(UserError, match="is there already"):
        app([*words, "--hardware", "1x24"], standalone_mode=False)
    assert place.read_bytes() == before
    app(["check", str(place)], standalone_mode=False)
    assert "Memory a process" in capsys.readouterr().out
