"""Supervised warm-up: the policies that DRO starts from, as the paper makes them.

The selector learns the retriever's order with noise, an encoder to tell gold documents from others;
the generator learns to answer from gold documents among distractors; a base that both share learns
both. A policy with `init: scratch` is made first, and pretrained on the built-in world's curriculum
or on the corpus.
"""

from __future__ import annotations

import math
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from dro_rl import encoder_warmup
from dro_rl.data import Split
from dro_rl.encoder_learner import learner_class
from dro_rl.errors import UserError
from dro_rl.evaluation import answer_recall
from dro_rl.learner import Learner
from dro_rl.policy.causal_lm import prompt_writer
from dro_rl.policy.completion import Completion
from dro_rl.policy.scratch import make_scratch
from dro_rl.policy.targets import Target, answer_target
from dro_rl.prompts import PromptWriter, write_selection
from dro_rl.questions import load_questions
from dro_rl.recipe import POLICIES, PolicyName, Recipe
from dro_rl.records import Example
from dro_rl.sections.algorithm import DroAlgorithm
from dro_rl.sections.data import FactsData
from dro_rl.sections.encoder import EncoderSelector
from dro_rl.step_metrics import tell_bad_steps
from dro_rl.step_totals import StepMetrics
from dro_rl.tracking.console import Console

LANGUAGE_MODELLING_STEPS = 1000


def warm_up(recipe: Recipe, output: Path | None, console: Console) -> dict[PolicyName, Path]:
    """Make both policies, or the base that they share.

    Args:
        recipe: its `warmup` section says how.
        output: a folder for `selector/` and `generator/` (of a shared base, `selector/` alone);
            None writes each to its `model`.
        console: shows progress.
    Returns:
        the folder of each that was made.
    Raises:
        UserError: a place that exists already or cannot be written, or a recipe that warms up
            nothing.
    """
    policies: tuple[PolicyName, ...] = ("selector",) if recipe.shares_base else recipe.policies
    targets: dict[PolicyName, Path] = {p: _place(recipe, p, output) for p in policies}
    questions = load_questions(recipe, console)
    made: dict[str, str] = {}
    for policy in policies:
        base = _base(recipe, policy, questions, targets[policy].parent, made, console)
        learned = POLICIES if recipe.shares_base else (policy,)
        steps = recipe.warmup.steps * len(learned)
        learner = _learner(recipe, policy, base, steps, recipe.warmup.learning_rate)
        _fit(
            learner,
            _drawing_batches(recipe, learned, base, questions.train),
            steps,
            f"warm up {policy}",
            console,
        )
        partial = targets[policy].with_name(f"{policy}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        learner.save_policy(partial)
        partial.rename(targets[policy])
    return targets


# --- what is learned ------------------------------------------------------------------------------


def _drawing_batches(
    recipe: Recipe, policies: Sequence[PolicyName], model: str, questions: Sequence[Example]
) -> Callable[[], list[list[Target]]]:
    """What draws the next batch, the targets of each of its questions."""
    section = recipe.policy(policies[0])
    if isinstance(section, EncoderSelector):
        return encoder_warmup.drawing(recipe, section, questions)
    return _batches(_drawing(recipe, policies, model, questions), recipe.warmup.batch_size)


def _drawing(
    recipe: Recipe, policies: Sequence[PolicyName], model: str, questions: Sequence[Example]
) -> Callable[[], Target]:
    """What draws the next thing to learn: of any of the policies, from any question."""
    rng = random.Random(f"warmup/{policies[0]}/{recipe.training.seed}")
    writers = {p: prompt_writer(recipe.causal_lm(p), model) for p in policies}

    def draw() -> Target:
        policy = rng.choice(policies) if len(policies) > 1 else policies[0]
        target = selector_target if policy == "selector" else generator_target
        return target(recipe, writers[policy], rng.choice(questions), rng)

    return draw


def _batches(draw: Callable[[], Target], size: int) -> Callable[[], list[list[Target]]]:
    return lambda: [[draw()] for _ in range(size)]


def selector_target(
    recipe: Recipe, writer: PromptWriter, example: Example, rng: random.Random
) -> Target:
    """The selection a noisy teacher makes: top K of retriever score / temperature + Gumbel noise,
    which draws without replacement from the softmax of the scores (Plackett-Luce)."""
    noisy = [
        s / recipe.warmup.teacher_temperature - math.log(-math.log(rng.random() or 1e-300))
        for s in example.scores
    ]
    k = recipe.selector.documents
    chosen = sorted(range(len(noisy)), key=lambda i: -noisy[i])[:k]
    prompt = writer.select(example.question, example.candidates, k)
    token_ids = writer.completion(write_selection(chosen))
    return Target((Completion(prompt.token_ids, token_ids),))


def generator_target(
    recipe: Recipe, writer: PromptWriter, example: Example, rng: random.Random
) -> Target:
    """The answer from the gold documents among distractors, in a random order."""
    gold = _supporting(example)
    others = [i for i, d in enumerate(example.candidates) if not d.is_gold]
    room = max(0, recipe.selector.documents - len(gold))
    extra = rng.sample(others, min(len(others), room, recipe.warmup.distractors))
    documents = [*gold[: recipe.selector.documents], *extra]
    rng.shuffle(documents)
    return answer_target(writer, example, documents, "first")


def _supporting(example: Example) -> list[int]:
    """The gold documents, those first that add a part of the answer: the first K of them are not to
    leave one out for two that say the same."""
    gold = [i for i, d in enumerate(example.candidates) if d.is_gold]
    chosen: list[int] = []
    for i in gold:
        before, after = (answer_recall(example, d, len(d)) for d in (chosen, [*chosen, i]))
        if after > before:
            chosen.append(i)
    return [*chosen, *(i for i in gold if i not in chosen)]


# --- how ------------------------------------------------------------------------------------------


def _place(recipe: Recipe, policy: PolicyName, output: Path | None) -> Path:
    section = recipe.policy(policy)
    if output is None and section.init is None:
        raise UserError(
            f"{policy}.init is not set, so its model is used as it is: set it to scratch or to a "
            "model to warm up, or give --output DIR to warm up its model into DIR"
        )
    if output is None and section.model.startswith("builtin/"):
        run_dir = Path(recipe.tracking.run_dir).expanduser()
        output = run_dir.with_name(run_dir.name + "-warmup")
    place = output / policy if output else Path(section.model).expanduser()
    if place.exists():
        raise UserError(f"{place}: exists already: remove it, or give another place with --output")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{place}: cannot be made ({error.strerror}): give --output DIR") from error
    return place


def _base(
    recipe: Recipe,
    policy: PolicyName,
    questions: Split,
    folder: Path,
    made: dict[str, str],
    console: Console,
) -> str:
    """The model to warm up; policies of the same sizes share one that is made from scratch."""
    section = recipe.policy(policy)
    if isinstance(section, EncoderSelector) or section.init != "scratch":
        return section.init or section.model
    key = repr((section.scratch, section.max_length))
    if key not in made:
        base = folder / f"base-{len(made)}"
        if recipe.warmup.pretraining == "facts":
            _facts_base(recipe, base, console)
        else:
            _corpus_base(recipe, policy, questions, base, console)
        made[key] = str(base)
    return made[key]


def _facts_base(recipe: Recipe, folder: Path, console: Console) -> None:
    from dro_rl.data.facts.curriculum import Figures, pretrain

    assert isinstance(recipe.data, FactsData)  # the recipe refuses another data set

    def report(figures: Figures) -> None:
        shown = (f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in figures.items())
        console.say("  " + ", ".join(shown))

    console.say("pretrain on the built-in world's curriculum: some minutes, ends when learned")
    pretrain(
        folder,
        seed=recipe.training.seed,
        documents=recipe.retrieval.candidates,
        value_words=recipe.data.value_words,
        steps=recipe.warmup.pretraining_steps,
        report=report,
    )


def _corpus_base(
    recipe: Recipe, policy: PolicyName, questions: Split, folder: Path, console: Console
) -> None:
    section = recipe.causal_lm(policy)
    texts = list(
        dict.fromkeys(f"{d.title}: {d.text}" for e in questions.train for d in e.candidates)
    )
    with console.stage("train tokenizer", len(texts), "paragraphs") as advance:
        prompts = [e.question for e in questions.train] + ["[0123456789] > Question: Selection:"]
        make_scratch(
            section.scratch, texts + prompts, section.max_length, recipe.training.seed, folder
        )
        advance(len(texts))
    if recipe.warmup.pretraining == "none":
        return
    steps = recipe.warmup.pretraining_steps or LANGUAGE_MODELLING_STEPS
    rate = recipe.warmup.pretraining_learning_rate
    learner = _learner(recipe, policy, str(folder), steps, rate)
    rng = random.Random(f"pretraining/{recipe.training.seed}")
    tokenizer = learner.writer.tokenizer

    def paragraph() -> Target:
        ids = tokenizer(rng.choice(texts))["input_ids"][: section.max_length]
        return Target((Completion(tuple(ids[:1]), tuple(ids[1:])),), 1 / len(ids))

    draw = _batches(paragraph, recipe.warmup.batch_size)
    _fit(learner, draw, steps, "pretrain on the corpus", console)
    learner.save_policy(folder)


def _learner(
    recipe: Recipe, policy: PolicyName, base: str, steps: int, learning_rate: float
) -> Learner:
    training = recipe.training.model_copy(
        update={"schedule": "cosine", "warmup_steps": steps // 20}
    )
    # Supervised: a weighted likelihood, whatever algorithm the run will train with.
    settings = recipe.model_copy(update={"training": training, "algorithm": DroAlgorithm()})
    section = recipe.policy(policy)
    if section.init == "scratch" and section.lora:  # which alone make no model of random weights
        whole = section.model_copy(update={"lora": None})
        settings = settings.model_copy(update={policy: whole})
    return learner_class(recipe, policy)(settings, policy, base, steps, learning_rate)


def _fit(
    learner: Learner,
    draw: Callable[[], list[list[Target]]],
    steps: int,
    title: str,
    console: Console,
) -> None:
    losses: list[float] = []
    with console.stage(title, steps, "steps") as advance:
        for _ in range(steps):
            told = learner.step_on(draw())
            done: dict[PolicyName, StepMetrics] = {learner.policy: told}
            tell_bad_steps(learner.recipe, done, console.say)
            losses.append(told.loss)
            advance(1)
    console.say(f"  loss {_mean(losses[:10]):.3f} to {_mean(losses[-10:]):.3f} nats a question")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
