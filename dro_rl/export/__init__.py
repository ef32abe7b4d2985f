"""`dro-rl export`: a trained pair as plain Hugging Face folders, with cards and a pipeline.py; of a
selector that is an encoder, a plain folder of sentence-transformers."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from dro_rl import durable
from dro_rl.checkpoint import kept, policies_of
from dro_rl.errors import UserError
from dro_rl.export.card import Exported, model_card
from dro_rl.export.standalone import standalone
from dro_rl.model_folders import local_model
from dro_rl.policy import causal_lm
from dro_rl.policy.merging import save_policy
from dro_rl.prompts import prompt_style
from dro_rl.recipe import PolicyName, Recipe
from dro_rl.recipe_file import load_recipe
from dro_rl.sections.encoder import EncoderSelector
from dro_rl.tracking.run_directory import RunDirectory

__all__ = ["export_run"]


def export_run(
    run: Path,
    out: Path,
    iteration: int | Literal["best"] | None = None,
    say: Callable[[str], object] = lambda text: None,
) -> Path:
    """Write selector/, generator/, pipeline.json and pipeline.py: all of it, or nothing. Beside a
    selector that is an encoder there is no pipeline, and without a generator none of those.

    Args:
        run: a run directory.
        out: a folder that is not there yet.
        iteration: by default the last; "best" is that of the best evaluation, by what the recipe
            watches (`tracking.keep_best`, `training.early_stop`), or else the bound, or without a
            generator the reward.
        say: told in a line what takes long.
    Returns:
        `out`, absolute.
    Raises:
        UserError: there is something at `out`, the run has no such checkpoint, or no selector.
    """
    directory = RunDirectory.open(run)
    recipe = load_recipe(str(run / "recipe.yaml"))
    out = out.absolute()
    if os.path.lexists(out):
        raise UserError(f"{out}: is there already: give another folder, or remove it")
    if recipe.decoding == "retriever":
        raise UserError(
            f"{run}: has no selector (rollout.decoding: retriever): its generator is a plain model "
            "already, in checkpoints/"
        )
    wanted = best_iteration(directory, recipe) if iteration == "best" else iteration
    at, models = policies_of(directory, recipe, wanted)
    about = Exported.read(directory, recipe, at)
    with durable.writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    with durable.aside(out) as folder:
        written: dict[str, Any] = {
            "decoding": recipe.decoding,
            "candidates": recipe.retrieval.candidates,
            "documents": recipe.selector.documents,
        }
        for policy in recipe.policies:
            say(f"{policy}: {models[policy]}")
            written[policy] = _write_policy(recipe, policy, models[policy], folder / policy)
            card = model_card(about, policy)
            (folder / policy / "README.md").write_text(card, encoding="utf-8")
        if not isinstance(recipe.selector, EncoderSelector):
            (folder / "pipeline.json").write_text(json.dumps(written, indent=1) + "\n", "utf-8")
            (folder / "pipeline.py").write_text(standalone(), encoding="utf-8")
    durable.publish(out)
    return out


def best_iteration(run: RunDirectory, recipe: Recipe) -> int:
    """The iteration of the best evaluation.

    Raises:
        UserError: the run has none, or has not kept the policies of the best.
    """
    watched = recipe.watched
    by_default = "reward" if recipe.generator.is_none else "bound"
    metric = watched.get("tracking.keep_best") or next(iter(watched.values()), by_default)
    if not run.evaluations():
        raise UserError(f"{run.path}: has no evaluation to say which is best: give --iteration N")
    best = run.best(metric)
    if best and best not in kept(run):
        raise UserError(
            f"{run.path}: iteration {best} is best by {metric}, and its checkpoint has not been "
            f"kept (tracking.keep_last without keep_best: {metric}): give --iteration N"
        )
    return best


def _write_policy(recipe: Recipe, policy: PolicyName, model: str, folder: Path) -> dict[str, Any]:
    """The model, read and written once, so that it is whole and plain; what pipeline.json says of
    it."""
    section = recipe.policy(policy)
    if isinstance(section, EncoderSelector):  # sentence-transformers wrote it, as it is to be
        shutil.copytree(local_model(model, "selector.model"), folder)
        return {}
    tokenizer = causal_lm.load_tokenizer(model)
    loaded = causal_lm.load_model(section, model, training=False, device="cpu")
    save_policy(loaded, tokenizer, folder, causal_lm.forward_dtype(section))
    return {
        "prompt": prompt_style(tokenizer, section.prompt),
        "max_length": section.max_length,
        "max_new_tokens": section.max_new_tokens,
    }
