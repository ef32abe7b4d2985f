"""A run with a pair of tiny policies, to be exported before its first iteration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dro_rl.recipe import Recipe
from dro_rl.tracking.run_directory import RunDirectory
from tests.models import make_llama, make_tokenizer, make_word_tokenizer
from tests.tiny import WORDS, make_recipe


def make_run(folder: Path, *, bytes: bool = True, chat: bool = False, **sections: Any) -> Path:
    """Give its directory; `bytes`: tokens of single bytes, not words."""
    for seed, policy in enumerate(("selector", "generator")):
        tokenizer = make_tokenizer(chat=chat) if bytes else make_word_tokenizer(WORDS, chat=chat)
        make_llama(folder / policy, tokenizer=tokenizer, hidden=32, seed=seed)
    recipe = make_recipe(folder, tracking={"run_dir": str(folder / "run")}, **sections)
    settings = recipe.resolved()
    for policy in ("selector", "generator"):
        settings[policy] |= {"max_length": 400, "max_new_tokens": 12}
    return RunDirectory.create(Recipe.model_validate(settings)).path
