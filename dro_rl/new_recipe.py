"""`dro-rl new`: a recipe from three answers, which data, which model, which hardware."""

from __future__ import annotations

import os
import re
import shlex
import stat
from pathlib import Path
from typing import Any

import yaml

from dro_rl.durable import write_text, writing
from dro_rl.errors import UserError
from dro_rl.recipe_file import make_recipe, merge, read_settings
from dro_rl.resources import find_file

DATA = (
    "facts (built in), a .jsonl file, or KIND:PATH with hotpotqa, musique, wikimultihop, "
    "natural_questions, wizard_of_wikipedia or dro"
)
MODEL = "builtin (facts only), scratch (a tiny Llama), or a folder or hub name"
HARDWARE = "cpu, or GPUs as NUMBERxGIB, such as 1x24 or 8x80"

_KINDS = ("hotpotqa", "musique", "wikimultihop", "natural_questions", "wizard_of_wikipedia", "dro")
_GIVEN = {"natural_questions": 20, "dro": 20, "wizard_of_wikipedia": 15}  # come with candidates
_WHOLE = 8, 80  # GPUs and GiB from which all weights learn

_COMMENTS = {
    "data": "docs/data.md has the files and formats",
    "retrieval": "docs/retrieval.md has the other kinds",
    "selector": "`model` is what `dro-rl warmup` makes of `init`",
    "reward": "docs/rewards.md has the others, and how to write one",
    "algorithm": "or grpo, rloo, ppo, reinforce, maxrl, independent: docs/method.md",
    "tracking": "docs/metrics.md explains the metrics, and further trackers",
}


def write_recipe(path: Path, data: str, model: str, hardware: str) -> list[str]:
    """Write the recipe; it is executable, as the project's own are.

    Args:
        path: of a file that is not there yet; its folder is made.
        data, model, hardware: as `DATA`, `MODEL` and `HARDWARE` say.
    Returns:
        The commands that come next.
    Raises:
        UserError: an answer that makes no sense, a file that is there already, or a place that
            cannot be written.
    """
    if os.path.lexists(path):
        raise UserError(f"{path}: is there already: give another name, or remove it")
    gpus = _gpus(hardware)
    settings = _settings(path.stem, data, model, gpus)
    make_recipe(settings, str(path))
    about = " ".join(f"{data} with {model} on {hardware}".split())
    text = f"#!/usr/bin/env -S dro-rl train\n# {about}.\n" + "".join(
        _section(key, value) for key, value in settings.items()
    )
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    place = shlex.quote(str(path))
    options = f" --gpus {gpus[0]} --gpu-memory {gpus[1]}" if gpus else ""
    commands = ["data", *([] if model == "builtin" else ["warmup"]), "train"]
    return [f"dro-rl check {place}{options}", *(f"dro-rl {c} {place}" for c in commands)]


def _settings(name: str, data: str, model: str, gpus: tuple[int, int] | None) -> dict[str, Any]:
    kind, place = _data(data)
    if model == "builtin" and kind != "facts":
        raise UserError(
            f"--model builtin can read --data facts alone, not {data}: give scratch, or a model's "
            "folder or hub name"
        )
    own = model not in ("builtin", "scratch")
    if own:
        settings = _shipped("dro_hotpot" if _is_whole(gpus) else "dro_hotpot_1gpu")
        settings = merge(settings, _fits(gpus))
    else:
        settings = _shipped("demo" if kind == "facts" else "hotpot_local")
    if kind != "facts":
        settings = merge(settings, _reads(kind, place))
    elif own:
        facts = _shipped("demo")
        world = {key: facts[key] for key in ("data", "retrieval")}
        settings = merge(settings, {**world, "selector": {"documents": 2}})
    settings = merge(settings, {"tracking": {"run_dir": f"runs/{name}"}})
    return settings if model == "builtin" else merge(settings, _starts_from(settings, name, model))


def _shipped(name: str) -> dict[str, Any]:
    return read_settings(find_file(f"{name}.yaml", "recipes"))


def _data(data: str) -> tuple[str, str]:
    """Kind and path."""
    kind, colon, place = data.partition(":")
    if data == "facts":
        return "facts", ""
    if re.search(r"\.jsonl(\.gz)?$", data) and kind not in _KINDS:
        kind, place = "jsonl", data
    elif not (colon and place and kind in _KINDS):
        raise UserError(f"--data {data}: give {DATA}")
    if re.search(r"\.jsonl?(\.gz)?$", place) and not os.path.isfile(Path(place).expanduser()):
        raise UserError(f"--data {data}: there is no file {place}")
    return kind, place


def _reads(kind: str, place: str) -> dict[str, Any]:
    """The data, where the candidates come from, and what both ask of the policies."""
    data: dict[str, Any] = {"kind": kind, "path": place, "evaluation_questions": 100}
    retrieval: dict[str, Any] = {"kind": "bm25", "corpus": "pooled", "candidates": 20}
    if kind in _GIVEN:
        retrieval = {"kind": "given", "candidates": _GIVEN[kind]}
    changes: dict[str, Any] = {"data": data, "retrieval": retrieval}
    if kind == "wizard_of_wikipedia":  # an answer is a turn of a dialogue, from one passage
        changes |= {"selector": {"documents": 1}, "generator": {"max_new_tokens": 128}}
    return changes


def _is_whole(gpus: tuple[int, int] | None) -> bool:
    return gpus is not None and gpus[0] >= _WHOLE[0] and gpus[1] >= _WHOLE[1]


def _fits(gpus: tuple[int, int] | None) -> dict[str, Any]:
    """Changes to the recipe of a model of one's own: what differs with the hardware."""
    if gpus is None:
        return {"selector": {"dtype": "float32"}}  # the generator is on the same base
    number, memory = gpus
    if _is_whole(gpus):  # as many engines and reward services as there are ranks
        number -= number % 2
        ranks, services = {"ranks": number // 2}, max(2, number // 4)
        return {
            "selector": ranks,
            "generator": ranks,
            "rollout": {"workers": number - 1 - services},
            "cluster": {"reward_workers": services},
        }
    changes: dict[str, Any] = {"generator": {"max_length": 2048}} if memory >= 80 else {}
    if number > 1:  # the learner has one of its own
        changes["rollout"] = {"workers": number - 1, "gpu_memory_utilization": 0.8}
    return changes


def _starts_from(settings: dict[str, Any], name: str, model: str) -> dict[str, Any]:
    """What the warm-up makes the policies from, and where it puts them."""
    changes: dict[str, Any] = {}
    for policy in ("selector", "generator"):
        if not settings[policy].get("share_base_with"):
            changes[policy] = {"model": f"runs/{name}-warmup/{policy}", "init": model}
    return changes


def _gpus(hardware: str) -> tuple[int, int] | None:
    """Number and GiB; None: no GPU."""
    if hardware == "cpu":
        return None
    given = re.fullmatch(r"([1-9]\d{0,2})x([1-9]\d{0,2})", hardware)
    if given is None:
        raise UserError(f"--hardware {hardware}: give {HARDWARE}")
    return int(given[1]), int(given[2])


class _Plain(yaml.SafeDumper):
    """Equal sections are written out, without anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _section(key: str, value: Any) -> str:
    text = yaml.dump({key: value}, Dumper=_Plain, sort_keys=False, allow_unicode=True)
    return f"\n# {_COMMENTS[key]}\n{text}" if key in _COMMENTS else f"\n{text}"
