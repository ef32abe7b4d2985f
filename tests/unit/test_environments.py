"""What is told of an environment of its own that is missing, broken or another than here."""

from __future__ import annotations

from pathlib import Path

import pytest

from dro_rl.errors import UserError
from dro_rl.retrieval import Retriever, make_retriever
from dro_rl.retrieval.environments import find_python
from dro_rl.sections.retrieval import Colbert, Pylate
from tests.environments import complete, stand_in

pytestmark = pytest.mark.unit

both = pytest.mark.parametrize("kind", ["colbert", "pylate"])


def made(kind: str, environment: str, tmp_path: Path) -> Retriever:
    section = {"colbert": Colbert, "pylate": Pylate}[kind]
    return make_retriever(section(kind=kind, model="no/model", environment=environment), tmp_path)


@both
def test_a_missing_environment_is_told_with_the_command_that_makes_it(tmp_path, kind):
    told = rf"retrieval.kind: {kind} .* none at .*/nowhere: make it with `make {kind}-env`"
    with pytest.raises(UserError, match=told):
        made(kind, str(tmp_path / "nowhere"), tmp_path)


@both
@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("echo 'No package metadata was found for it' >&2; exit 1", "lacks something of ray"),
        ("exit 1", "it said nothing"),
        ("echo rubbish", "does not work as a Python"),
    ],
)
def test_a_broken_environment_is_named(tmp_path, kind, body, told):
    with pytest.raises(UserError, match=told) as error:
        made(kind, stand_in(tmp_path, body), tmp_path)
    assert f"make {kind}-env" in str(error.value)


@both
@pytest.mark.parametrize("name", ["ray", "python"])
def test_other_versions_than_here_are_named(tmp_path, kind, name):
    with pytest.raises(UserError, match=rf"has {name} 2\.0\.0, here is"):
        made(kind, complete(tmp_path, **{name: "2.0.0"}), tmp_path)


def test_an_environment_is_found_from_any_working_folder(tmp_path, monkeypatch):
    checkout = Path(__file__).parents[2]
    monkeypatch.chdir(tmp_path)
    found = find_python("colbert", "scripts/setup.sh")  # any file of the checkout
    assert found == checkout / "scripts" / "setup.sh"
    (tmp_path / "python").symlink_to("/bin/sh")
    # the link itself is the environment's
    assert find_python("colbert", "python") == tmp_path / "python"
