"""ColBERT without its environment: what is told of a bad one, and of a bad checkpoint."""

from __future__ import annotations

import json
import platform
import shutil
from pathlib import Path

import pytest

from dro_rl.errors import UserError
from dro_rl.records import Document, Example
from dro_rl.retrieval import make_retriever, open_retriever
from dro_rl.retrieval.colbert import find_python
from dro_rl.retrieval_sections import Colbert, ColbertRetrieval

pytestmark = pytest.mark.unit

VERSIONS = {
    "ragatouille": "0.0.9.post2",
    "colbert-ai": "0.2.22",
    "python": platform.python_version(),
}


def python(tmp_path: Path, body: str) -> str:
    """A stand-in for an environment's Python."""
    path = tmp_path / "python"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def working(tmp_path: Path, **versions: str) -> str:
    import ray

    told = json.dumps({**VERSIONS, "ray": ray.__version__, **versions})
    return python(tmp_path, f"echo '{told}'")


def settings(environment: str, model: str = "no/model") -> Colbert:
    return Colbert(kind="colbert", model=model, environment=environment)


def test_a_missing_environment_is_told_with_the_command_that_makes_it(tmp_path):
    with pytest.raises(UserError, match=r"none at .*/nowhere: make it with `make colbert-env`"):
        make_retriever(settings(str(tmp_path / "nowhere")), tmp_path)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (
            "echo 'No package metadata was found for ragatouille' >&2; exit 1",
            "lacks something of ray",
        ),
        ("exit 1", "it said nothing"),
        ("echo rubbish", "does not work as a Python"),
    ],
)
def test_a_broken_environment_is_named(tmp_path, body, told):
    with pytest.raises(UserError, match=told) as error:
        make_retriever(settings(python(tmp_path, body)), tmp_path)
    assert "make colbert-env" in str(error.value)


@pytest.mark.parametrize("name", ["ray", "python"])
def test_other_versions_than_here_are_named(tmp_path, name):
    with pytest.raises(UserError, match=rf"has {name} 2\.0\.0, here is"):
        make_retriever(settings(working(tmp_path, **{name: "2.0.0"})), tmp_path)


def test_an_environment_is_found_from_any_working_folder(tmp_path, monkeypatch):
    checkout = Path(__file__).parents[2]
    monkeypatch.chdir(tmp_path)
    found = find_python("scripts/setup.sh")  # any file of the checkout
    assert found == checkout / "scripts" / "setup.sh"
    (tmp_path / "python").symlink_to("/bin/sh")
    assert find_python("python") == tmp_path / "python"  # the link itself is the environment's


def test_what_is_no_checkpoint_is_named(tmp_path):
    (tmp_path / "model").mkdir()
    retriever = make_retriever(settings(working(tmp_path), str(tmp_path / "model")), tmp_path)
    with pytest.raises(UserError, match="is no ColBERT checkpoint: it has no readable artifact"):
        retriever.makers()


def test_a_checkpoint_that_was_moved_is_told_where_it_is(tmp_path):
    """Without it ColBERT takes bert-base-uncased instead, and says nothing."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "artifact.metadata").write_text(json.dumps({"model_name": "/gone", "dim": 8}))
    retriever = make_retriever(settings(working(tmp_path), str(model)), tmp_path / "cache")
    folder = Path(tmp_path / "cache" / retriever.makers()["model"])
    metadata = json.loads((folder / "artifact.metadata").read_text())
    assert metadata == {"model_name": str(folder), "checkpoint": str(folder), "dim": 8}
    before = json.loads((model / "artifact.metadata").read_text())
    assert before["model_name"] == "/gone"  # the user's own file stays as it is


def test_a_checkpoint_is_read_after_its_first_place_is_gone(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "artifact.metadata").write_text("{}")
    make_retriever(settings(working(tmp_path), str(model)), tmp_path / "cache").makers()
    moved = tmp_path / "moved"
    shutil.move(model, moved)
    retriever = make_retriever(settings(working(tmp_path), str(moved)), tmp_path / "cache")
    folder = Path(tmp_path / "cache" / retriever.makers()["model"])
    assert (folder / "config.json").read_text() == "{}"


def test_too_few_passages_are_told(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "artifact.metadata").write_text("{}")
    section = ColbertRetrieval(
        kind="colbert",
        model=str(model),
        environment=working(tmp_path),
        cache_dir=str(tmp_path / "cache"),
    )
    few = [Example("c", "", (), (Document("A", "a"),))]
    with (
        pytest.raises(UserError, match="1 passages are too few .* 100 are the least"),
        open_retriever(section, few),
    ):
        pass
