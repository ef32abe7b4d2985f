"""What is fuzzed of what a run has left: each file of it, damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from dro_rl import checkpoint, durable
from dro_rl.policy.causal_lm import load_model, prompt_writer
from dro_rl.recipe_file import load_recipe
from dro_rl.sections.policy import PolicySection
from dro_rl.tracking.report import write_report
from dro_rl.tracking.run_directory import RunDirectory
from tests.fuzzing import Target, written
from tests.made_runs import make_run, question


@st.composite
def _damage(draw: st.DrawFn, names: list[str]) -> tuple[str, Any]:
    """A file, and what becomes of its content."""
    name = draw(st.sampled_from(names))
    return name, draw(st.integers(0, 2**32 - 1))


def _damaged(content: bytes, seed: int) -> bytes:
    """Bits flipped, cut short, overwritten or emptied. The content is known only when a run was
    made, so what is drawn is a seed."""
    import random

    chance = random.Random(seed)
    kind = chance.randrange(4)
    if kind == 0:
        return content[: chance.randrange(len(content) + 1)]
    changed = bytearray(content)
    for _ in range(chance.randint(1, 4) if changed else 0):
        place = chance.randrange(len(changed))
        changed[place] = (
            chance.randrange(256) if kind == 1 else changed[place] ^ (1 << chance.randrange(8))
        )
    return bytes(changed)


_OF_A_RUN = [
    "recipe.yaml",
    "metrics.jsonl",
    "evaluation/questions.parquet",
    "evaluation/iteration-0000.json",
    "evaluation/iteration-0001.jsonl",
    "rollouts/iteration-0001.parquet",
    "rollouts/iteration-0001-questions.parquet",
]


def _make_run(folder: Path) -> None:
    make_run(folder / "run", [question(i) for i in range(2)], iterations=1)
    (folder / "report.html").touch()


def _run_run(folder: Path, case: tuple[str, int]) -> None:
    name, seed = case
    path = folder / "run" / name
    with written(path, _damaged(path.read_bytes(), seed)):
        run = RunDirectory.open(folder / "run")
        write_report([run], folder / "report.html")
        load_recipe(str(folder / "run" / "recipe.yaml"))


_OF_A_SAVE = ["manifest.json", "selector/model.safetensors", "selector.learner.pt", "known.json"]


def _make_save(folder: Path) -> None:
    run = make_run(folder / "run", [question(1)], iterations=1)
    place = checkpoint.folder_of(run, 1)
    with durable.aside(place) as partial:
        (partial / "selector").mkdir()
        for name in _OF_A_SAVE[1:]:
            (partial / name).write_bytes(name.encode() * 9)
    durable.publish(place)


def _run_save(folder: Path, case: tuple[str, int]) -> None:
    name, seed = case
    run = RunDirectory.open(folder / "run")
    path = checkpoint.folder_of(run, 1) / name
    whole = path.read_bytes()
    with written(path, _damaged(whole, seed)):
        assert checkpoint.latest_good(run, lambda text: None) == 1
        if name != _OF_A_SAVE[0]:  # white space in a manifest is no damage
            assert path.read_bytes() == whole  # whatever differs is noticed


_OF_A_MODEL = ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]


def _make_model(folder: Path) -> None:
    from tests.models import make_llama, make_word_tokenizer

    tokenizer = make_word_tokenizer(["Lyon", "Oslo"], identifiers=4)
    make_llama(folder / "model", tokenizer=tokenizer, hidden=32, layers=1, context=64)


def _run_model(folder: Path, case: tuple[str, int]) -> None:
    name, seed = case
    path = folder / "model" / name
    section = PolicySection(model=str(folder / "model"), max_length=64, max_new_tokens=8)
    with written(path, _damaged(path.read_bytes(), seed)):
        prompt_writer(section, section.model).answer("Where?", [])
        load_model(section, section.model, training=False)


TARGETS = [
    Target("run directories", _damage(_OF_A_RUN), _run_run, _make_run, cases_in_ci=120),
    Target("saves", _damage(_OF_A_SAVE), _run_save, _make_save, cases_in_ci=100),
    Target("models", _damage(_OF_A_MODEL), _run_model, _make_model, cases_in_ci=80),
]
