"""Model cards of an exported pair: what the run knows, and nothing that it does not."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from dro_rl.evaluation.significance import Difference, paired_bootstrap
from dro_rl.recipe import PolicyName, Recipe
from dro_rl.sections.data import FileData, HubData
from dro_rl.sections.encoder import EncoderSelector
from dro_rl.sections.policy import AnyPolicy
from dro_rl.tracking import stored
from dro_rl.tracking.run_directory import RunDirectory, environment

Scores = dict[str, float]  # a figure of every held-out question, by its id

_FIGURES = {  # by their key in an evaluation: as the table names them, and as the hub does
    "em": ("exact match", "exact_match"),
    "f1": ("F1", "f1"),
    "recall@1": ("answer in the first selected document", "recall_at_1"),
    "recall@3": ("answer in the first 3 selected", "recall_at_3"),
    "recall@5": ("answer in the first 5 selected", "recall_at_5"),
    "gold_recall": ("supporting documents selected", "gold_recall"),
    "bound": ("bound on the answer's log-likelihood [nats]", "bound"),
    "reward": ("reward", "reward"),
}
_TASK = {
    "selector": "reads a question and up to {n} documents and writes an ordered selection of at "
    "most {k} of them, such as `[3] > [1]`",
    "generator": "answers a question from the documents that the selector has selected",
}
_SCORES = (
    "scores each of up to {n} documents for a question; its selection is the best {k}, in order"
)
_OTHER: dict[PolicyName, PolicyName] = {"selector": "generator", "generator": "selector"}


@dataclass(frozen=True)
class Exported:
    """What a card is made of.

    `before` and `after` are the evaluations of the warm start and of the exported iteration, by
    figure and question; None where the run has none.
    """

    name: str
    recipe: Recipe
    iteration: int
    before: Mapping[str, Scores] | None
    after: Mapping[str, Scores] | None

    @classmethod
    def read(cls, run: RunDirectory, recipe: Recipe, iteration: int) -> Exported:
        """Of an iteration of a run.

        Raises:
            UserError: an evaluation is damaged.
        """
        known = {summary["iteration"] for summary in run.evaluations()}
        before, after = (_scores(run, i) if i in known else None for i in (0, iteration))
        return cls(run.path.absolute().name, recipe, iteration, before, after)


def _scores(run: RunDirectory, iteration: int) -> dict[str, Scores]:
    rows = list(run.evaluated_questions(iteration, stored.Answered))
    found = {
        key: {r["example"]: r[key] for r in rows if r.get(key) is not None} for key in _FIGURES
    }
    return {key: scores for key, scores in found.items() if scores}


def model_card(about: Exported, policy: PolicyName) -> str:
    """README.md of the policy's folder; its front matter is what the hub reads."""
    front = yaml.safe_dump(_front_matter(about, policy), sort_keys=False, allow_unicode=True)
    recipe = about.recipe
    task = _SCORES if _is_encoder(recipe, policy) else _TASK[policy]
    task = task.format(n=recipe.retrieval.candidates, k=recipe.selector.documents)
    pair = "One of two models that were trained together"
    other = f" The other is the {_OTHER[policy]}."
    if recipe.generator.is_none:
        pair, other = "Trained", ""
    start = "its warm start" if about.iteration == 0 else f"iteration {about.iteration}"
    return f"""---
{front}---

# {about.name}: {policy}

{pair} by Direct Retrieval-augmented Optimization
([DRO](https://arxiv.org/abs/2505.03075)) with dro_rl {metadata.version("dro-rl")}: this one
{task}.{other} From run `{about.name}`, {start}.

## Use

{_use(recipe, policy)}

## Measured

{_measured(about)}

## Made from

- Base model: {_origin(recipe.policy(policy))[1]}.
- Data: {_data(recipe)[1]}.

```yaml
{_settings(about.recipe, policy)}```

Written with {", ".join(environment())}.

## Licence

This card states none. Which terms apply follows from the base model and from the data: look up both
before you pass these weights on.
"""


_PIPELINE = """\
`pipeline.py`, beside the two folders, needs torch and transformers alone:

```python
from pipeline import Pipeline

pipeline = Pipeline("FOLDER")  # with pipeline.json, selector/ and generator/
found = pipeline.answer("QUESTION", [{"title": "TITLE", "text": "TEXT"}])
print(found.text, found.documents)
```

The prompts in `pipeline.py` are those of training; with others the model has not been measured."""
_SENTENCE_TRANSFORMERS = """\
A plain folder of sentence-transformers, for whatever takes one: `SentenceTransformer("FOLDER")`,
or `CrossEncoder("FOLDER")` where it was made from a cross-encoder. A document is read as its title,
a space and its text."""
_CONDITIONAL = """ After each pick the picked text is appended to the
question, and what is left is scored anew."""
_BESIDE_AN_ENCODER = """\
A plain causal language model. Its prompts are `dro_rl.prompts.PromptWriter.answer`'s; with others
it has not been measured."""


def _use(recipe: Recipe, policy: PolicyName) -> str:
    if _is_encoder(recipe, policy):
        conditional = isinstance(recipe.selector, EncoderSelector) and recipe.selector.conditional
        return _SENTENCE_TRANSFORMERS + (_CONDITIONAL if conditional else "")
    return _BESIDE_AN_ENCODER if _is_encoder(recipe, "selector") else _PIPELINE


def _is_encoder(recipe: Recipe, policy: PolicyName) -> bool:
    return isinstance(recipe.policy(policy), EncoderSelector)


def _front_matter(about: Exported, policy: PolicyName) -> dict[str, Any]:
    base, data = _origin(about.recipe.policy(policy))[0], _data(about.recipe)[0]
    encoder = _is_encoder(about.recipe, policy)
    front: dict[str, Any] = {
        "library_name": "sentence-transformers" if encoder else "transformers",
        "pipeline_tag": "text-ranking" if encoder else "text-generation",
    }
    if base:
        front |= {"base_model": base, "base_model_relation": "finetune"}
    if data:
        front["datasets"] = [data]
    front["tags"] = [
        "dro_rl",
        f"dro-{policy}",
        "retrieval-augmented-generation",
        "arxiv:2505.03075",
    ]
    if about.after:
        kind = about.recipe.data.kind
        front["model-index"] = [
            {
                "name": f"{about.name} ({policy})",
                "results": [
                    {
                        "task": {"type": "question-answering"},
                        "dataset": {"type": data or kind, "name": f"{kind}, held-out questions"},
                        "metrics": [
                            {"type": _FIGURES[key][1], "value": _mean(scores).mean}
                            for key, scores in about.after.items()
                        ],
                    }
                ],
            }
        ]
    return front


# --- figures --------------------------------------------------------------------------------------


def _measured(about: Exported) -> str:
    if not about.after:
        return "Not evaluated: the run has no evaluation of these weights."
    moved = about.before if about.iteration else None
    head = ["", *(["warm start"] if moved else []), f"iteration {about.iteration}"]
    head += ["change"] if moved else []
    rows = [head, ["---"] * len(head)]
    for key, scores in about.after.items():
        row = [_FIGURES[key][0]]
        if moved:
            row.append(_shown(key, _mean(moved[key])))
        row.append(_shown(key, _mean(scores)))
        if moved:
            row.append(_shown(key, paired_bootstrap([(moved[key], scores)])))
        rows.append(row)
    size = max(len(scores) for scores in about.after.values())
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return (
        f"Both models together, on {size} held-out questions of `{about.recipe.data.kind}`, greedy "
        "decoding; in brackets the 95 % bootstrap interval over questions. Rates are in %. What "
        f"they do on other questions has not been measured.\n\n{table}"
    )


def _mean(scores: Mapping[str, float]) -> Difference:
    return paired_bootstrap([(dict.fromkeys(scores, 0.0), scores)])


def _shown(key: str, figure: Difference) -> str:
    if key in ("bound", "reward"):
        return f"{figure.mean:.3f} [{figure.low:.3f}, {figure.high:.3f}]"
    return f"{100 * figure.mean:.1f} [{100 * figure.low:.1f}, {100 * figure.high:.1f}]"


# --- where it comes from --------------------------------------------------------------------------


def _origin(section: AnyPolicy) -> tuple[str | None, str]:
    """The hub's name of the base model, if it has one, and what to call it."""
    if section.model.startswith("builtin/"):
        return None, f"`{section.model}`, which dro_rl carries"
    name = section.init or section.model
    if name == "scratch":
        return None, "none: random weights, made by `dro-rl warmup`"
    if _is_hub_name(name):
        return name, f"[{name}](https://huggingface.co/{name})"
    return None, f"a local folder, `{Path(name).name}`"


def _data(recipe: Recipe) -> tuple[str | None, str]:
    """The same of the data."""
    data = recipe.data
    if not isinstance(data, FileData):
        return None, f"`{data.kind}`, questions about a generated world that dro_rl carries"
    if isinstance(data, HubData) and _is_hub_name(data.path):
        return data.path, f"[{data.path}](https://huggingface.co/datasets/{data.path})"
    return None, f"`{data.kind}`, read from `{Path(data.path).name}`"


def _is_hub_name(name: str) -> bool:
    return name.count("/") == 1 and name[0] not in "./~" and not os.path.exists(name)


def _settings(recipe: Recipe, policy: PolicyName) -> str:
    """The part of the recipe that decided the result, without folders and addresses of ours."""
    settings = recipe.resolved()
    kept = ("data", "retrieval", policy, "rollout", "reward", "algorithm", "training")
    shown = {key: _without_places(settings[key]) for key in kept}
    return yaml.safe_dump(shown, sort_keys=False, allow_unicode=True)


def _without_places(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_places(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_places(inner) for inner in value]
    if isinstance(value, str) and value.startswith(("/", "~")):
        return Path(value).name
    if isinstance(value, str) and (address := re.match(r"[\w+.-]+://", value)):
        return f"{address[0]}..."
    return value
