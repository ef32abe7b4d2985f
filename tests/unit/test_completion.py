"""What the shell offers on <TAB>, through the shell's own script where there is a bash."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from dro_rl import completion
from tests.commands import ROOT, environment

pytestmark = pytest.mark.unit


def test_recipes_are_offered_by_name_and_by_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "desk.yaml").touch()
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "one.yaml").touch()
    (tmp_path / "details.txt").touch()
    assert completion.recipe_names("de") == ["demo.yaml", "desk.yaml", "dev/"]
    assert completion.recipe_names("dev/") == ["dev/one.yaml"]
    assert completion.recipe_names("paper/fig")[0] == "paper/figure_3.yaml"
    assert completion.recipe_names("[x") == []


def test_settings_are_offered_section_by_section():
    assert completion.settings("tra") == ["tracking.", "training."]
    assert completion.settings("training.it") == ["training.iterations="]
    assert completion.settings("selector.lora.r") == ["selector.lora.rank="]
    assert completion.settings("selector.lora") == ["selector.lora."]
    assert "data.value_words=" in completion.settings("data.")  # of any kind
    assert completion.settings("retrieval.of") == ["retrieval.of="]
    assert completion.settings("nothing.at.all") == []


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
def test_the_script_that_bash_is_given_completes(tmp_path):
    told = subprocess.run(
        ["bash", "-c", _ASK],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert told.returncode == 0, told.stderr
    assert told.stdout.split() == ["training.iterations="]


_ASK = """
eval "$(dro-rl --show-completion)"
COMP_WORDS=(dro-rl train demo.yaml training.it)
COMP_CWORD=3
_dro_rl_completion dro-rl
printf '%s\\n' "${COMPREPLY[@]}"
"""
