"""Vectors of a frozen encoder on disk: computed once, the same to the last bit, and never trusted
blindly. Two `Vectors` of a folder are what two processes have."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dro_rl.policy import vectors
from dro_rl.policy.encoder_files import load_encoder
from dro_rl.policy.picks import State
from dro_rl.policy.vectors import TaskText, Vectors
from tests.encoders import make_bi_encoder, make_encoder_recipe
from tests.tiny import make_example

pytestmark = pytest.mark.unit

TEXTS: list[TaskText] = [("document", f"text {i}") for i in range(5)] + [("query", "text 0")]


def computed(text: TaskText) -> Tensor:
    return torch.rand(4, generator=torch.Generator().manual_seed(len(TEXTS) + TEXTS.index(text)))


def known(text: TaskText) -> Tensor:
    raise AssertionError(f"{text} is computed again")


def written(folder: Path) -> Tensor:
    made = Vectors(folder)
    rows = made.of(TEXTS, computed)
    made.write()
    return rows


def test_another_process_finds_the_same_bits(tmp_path):
    rows = written(tmp_path / "kept")
    assert torch.equal(rows, torch.stack([computed(text) for text in TEXTS]))
    assert torch.equal(Vectors(tmp_path / "kept").of(TEXTS[::-1], known), rows.flip(0))


def test_processes_add_to_a_folder_at_once(tmp_path):
    one, other = Vectors(tmp_path), Vectors(tmp_path)
    one.of(TEXTS[:3], computed)
    other.of(TEXTS[2:5], computed)
    one.write()
    other.write()
    rows = one.of(TEXTS[:5], known)
    assert torch.equal(rows, other.of(TEXTS[:5], known))
    assert torch.equal(rows, Vectors(tmp_path).of(TEXTS[:5], known))


@pytest.mark.parametrize("keep", [0, 100, -1], ids=["empty", "torn", "a bit short"])
def test_a_torn_file_is_computed_again(tmp_path, keep):
    rows = written(tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:keep])
    assert torch.equal(written(tmp_path), rows)
    assert torch.equal(Vectors(tmp_path).of(TEXTS, known), rows)  # which has mended the folder


def test_a_changed_file_is_computed_again(tmp_path):
    rows = written(tmp_path)
    (file,) = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert torch.equal(written(tmp_path), rows)


def test_what_a_killed_process_had_is_there_but_for_a_few(tmp_path):
    many = [("document", str(i)) for i in range(110)]
    killed = Vectors(tmp_path)
    for some in (many[:50], many[50:100], many[100:]):
        killed.of(some, lambda text: torch.full((2,), float(text[1])))
    rows = Vectors(tmp_path).of(many[:100], known)
    assert rows[:, 0].tolist() == list(range(100))
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_that_cannot_be_written_is_told_of_once(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    made = Vectors(tmp_path / "file" / "kept")
    for some in (TEXTS[:2], TEXTS[2:]):
        assert torch.equal(made.of(some, computed), torch.stack([computed(t) for t in some]))
        made.write()
    assert capsys.readouterr().err.count("not kept on disk: ") == 1


def test_a_recipes_encoder_is_asked_once_for_all_runs(tmp_path, monkeypatch):
    model = make_bi_encoder(tmp_path / "model")
    recipe = make_encoder_recipe(model, {"train": "head"})
    folders = []

    def scores(changed: bool = False, known: bool = False) -> Tensor:
        vectors.vectors_in.cache_clear()  # as another process
        section = recipe.selector.model_copy(update={"max_length": 3} if changed else {})
        encoder = load_encoder(section, str(model))
        assert encoder.frozen is not None
        if known:
            monkeypatch.setattr(encoder.frozen, "encode", None)
        with torch.no_grad():
            found = encoder.scores([State(make_example())])
        encoder.frozen.vectors.write()
        folders.append(encoder.frozen.vectors.folder)
        return found

    first = scores()
    assert torch.equal(scores(known=True), first)
    assert not torch.equal(scores(changed=True), first)
    assert folders[0] == folders[1] != folders[2]
    assert all(folder.parent == tmp_path / "cache" for folder in folders)


def test_what_decides_on_the_vectors_names_their_folder(tmp_path):
    """Wherever the encoder lies."""
    model = make_bi_encoder(tmp_path / "model")

    def folder(place: str, changed: str = "config.json", **settings) -> str:
        copy = shutil.copytree(model, tmp_path / place)
        path = copy / changed
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))
        recipe = make_encoder_recipe(copy, {"train": "head"})
        encoder = load_encoder(recipe.selector, str(copy))
        assert encoder.frozen is not None
        return encoder.frozen.vectors.folder.name

    prompts = {"changed": "config_sentence_transformers.json", "prompts": {"x": "x: "}}
    names = [
        folder("here"),
        folder("rounded", layer_norm_eps=0.1),
        folder("prompted", **prompts, default_prompt_name="x"),
        folder("not prompted", **prompts, default_prompt_name=None),
    ]
    assert len(set(names)) == 4
    assert folder("elsewhere") == names[0]
