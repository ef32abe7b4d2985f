"""`dro-rl reward FILE --recipe R`: one reward on a few questions, in this process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console as RichConsole
from rich.markup import escape
from rich.table import Table

from dro_rl.prompts import write_selection
from dro_rl.questions import load_questions, questions_of, seed_of
from dro_rl.recipe import Recipe
from dro_rl.records import Example, Outcome, Rollout
from dro_rl.reward import Reward, load_reward
from dro_rl.reward.checks import checked_scores
from dro_rl.reward.scoring import Documents, outcomes_of
from dro_rl.reward.service import RewardService
from dro_rl.rollout.encoder_worker import worker_class
from dro_rl.rollout.worker import RolloutWorker
from dro_rl.sections.reward import in_words
from dro_rl.tracking.console import Console


def run_reward(recipe: Recipe, questions: int, console: Console) -> None:
    """Show selection, answer and score of the first questions that training would take.

    Selections are the recipe's, of the policies that training starts from. What the reward needs is
    computed first, for all questions; then nothing but the reward runs, a question a call, and
    nothing draws on the screen: a `breakpoint()` in it works.

    Args:
        recipe: its cluster.mode must be local, and its reward is the one to run.
        questions: how many.
    Raises:
        UserError: bad input, or the reward returned what is no usable number.
    """
    reward = load_reward(recipe.reward)
    train = load_questions(recipe, console).train
    rollouts = _sampled(recipe, questions_of(recipe, train, 1)[:questions])
    answers = _answered(recipe, rollouts) if "answer" in reward.needs else None
    groups = _outcomes(recipe, reward, rollouts, answers)
    needs = " and ".join(reward.needs) or "nothing"
    console.say(f"{in_words(recipe.reward)}: scale {reward.scale}, needs {needs}")
    for rollout, group in zip(rollouts, groups, strict=True):
        scores = checked_scores(reward, [*group.values()])
        _show(rollout, group, dict(zip(group, scores, strict=True)), console)


def _sampled(recipe: Recipe, examples: Sequence[Example]) -> list[Rollout]:
    worker = worker_class(recipe, "selector")(recipe, "selector", recipe.selector.model)
    return worker.select(examples, recipe.algorithm.samples, seed_of(recipe, "rollout", 1))


def _answered(recipe: Recipe, rollouts: Sequence[Rollout]) -> list[list[str]]:
    worker = RolloutWorker(recipe, "generator", recipe.generator.model)
    asked = [(r.example, s.documents) for r in rollouts for s in r.selections]
    texts = iter(worker.answer([e for e, _ in asked], [d for _, d in asked]))
    return [[next(texts) for _ in r.selections] for r in rollouts]


def _outcomes(
    recipe: Recipe,
    reward: Reward,
    rollouts: Sequence[Rollout],
    answers: Sequence[Sequence[str]] | None,
) -> list[dict[Documents, Outcome]]:
    if "likelihood" in reward.needs:
        return RewardService(recipe, recipe.generator.model).outcomes(rollouts, answers)
    given = answers or [None] * len(rollouts)
    return [outcomes_of(r, None, 0, a) for r, a in zip(rollouts, given, strict=True)]


def _show(
    rollout: Rollout,
    group: Mapping[Documents, Outcome],
    scores: Mapping[Documents, float],
    console: Console,
) -> None:
    """A row a different selection, the best first; * marks supporting documents."""
    example = rollout.example
    drawn = Counter(s.documents for s in rollout.selections)
    console.say(f"\n{example.id}: {example.question}  (reference: {' | '.join(example.answers)})")
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("selection", "drawn", "log p(y)", "answer", "score"):
        table.add_column(heading, justify="left" if heading in ("selection", "answer") else "right")
    for documents in sorted(group, key=lambda d: -scores[d]):
        outcome = group[documents]
        gold = "".join("*" if example.candidates[i].is_gold else "-" for i in documents)
        likelihood = outcome.log_likelihood
        table.add_row(
            escape(f"{write_selection(documents) or '(none)'}  {gold}"),
            str(drawn[documents]),
            "-" if likelihood is None else f"{likelihood:.3f}",
            "-" if outcome.answer is None else escape(outcome.answer),
            f"{scores[documents]:.4f}",
        )
    RichConsole(file=console.rich.file, width=max(console.rich.width, 100)).print(table)
