"""A trained pair at work: retrieve, select, answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType

from dro_rl.checkpoint import policies_of
from dro_rl.errors import UserError
from dro_rl.finding import Finder, Unanswerable
from dro_rl.policy.causal_lm import prompt_writer
from dro_rl.policy.encoder_files import check_encoder
from dro_rl.prompts import PromptWriter
from dro_rl.recipe import PolicyName, Recipe
from dro_rl.recipe_file import load_recipe, localise
from dro_rl.records import Document, Example
from dro_rl.remote import NoReply
from dro_rl.rollout.encoder_worker import EncoderWorker, worker_class
from dro_rl.rollout.worker import RolloutWorker
from dro_rl.sections.encoder import EncoderSelector
from dro_rl.tracking.run_directory import RunDirectory

Say = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a pipeline found.

    `documents` are those that were selected, in the selector's order, out of `candidates`;
    `places` are theirs among the candidates, and `scores` the retriever's, one a candidate (higher
    is better), empty when unknown. `selection` is what the selector wrote, with 1-based identifiers
    of the candidates. Without a generator there is no text (None).
    """

    text: str | None
    selection: str
    documents: tuple[Document, ...]
    candidates: tuple[Document, ...]
    places: tuple[int, ...]
    scores: tuple[float, ...]


class Pipeline:
    """Answers questions with a run's policies, greedily, in this process.

    A context manager: an index that was opened, and what it started, is given back at the end.

    Args:
        recipe: the run's; says how documents are found, and which engine writes.
        models: each policy's folder or hub name.
        say: told in a line what takes long.
    """

    def __init__(
        self, recipe: Recipe, models: Mapping[PolicyName, str], say: Say = lambda text: None
    ) -> None:
        self.recipe, self.models = recipe, models
        self._finder = Finder(recipe, say)

    def answer(self, question: str, documents: Sequence[Document] | None = None) -> Answer:
        """Retrieve, select, answer.

        Args:
            documents: to select from, instead of what the recipe's retriever finds.
        Raises:
            UserError: the run's documents come with its questions, and this is none of them; or
                there are fewer documents than a selection holds.
        """
        asked = _asked(question)
        if documents is not None:
            return self._answers([self._finder.given(asked, documents)])[0]
        return self._answers(self._finder.find([asked]))[0]

    def answer_each(self, questions: Sequence[str]) -> list[Answer | UserError]:
        """The answers to questions that came together, in their order; where one cannot be
        answered, why not: `Unanswerable` where it is the question's own."""
        try:
            found = self._found_each([_asked(question) for question in questions])
            good = [example for example in found if isinstance(example, Example)]
            answers = iter(self._answers(good) if good else [])
        except UserError as error:  # of ours, so that each would meet with it
            return [error] * len(questions)
        return [next(answers) if isinstance(f, Example) else f for f in found]

    def check(self) -> None:
        """What can be found out without an engine: whether there are policies that fit the recipe,
        and an index.

        Raises:
            UserError: there are not.
        """
        for policy in self.recipe.policies:
            section, model = self.recipe.policy(policy), self.models[policy]
            if isinstance(section, EncoderSelector):
                check_encoder(section, model)
            else:
                prompt_writer(section, model)
        self._finder.open()

    def load(self) -> None:
        """Both policies and the index now, and not with the first question."""
        _ = self._selector
        if not self.recipe.generator.is_none:
            _ = self._generator
        self._finder.open()

    def close(self) -> None:
        """Give back the index and what it started."""
        self._finder.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # --- policies -------------------------------------------------------------------------------

    def _answers(self, examples: Sequence[Example]) -> list[Answer]:
        chosen = [r.selections[0] for r in self._selector.select(examples, 1, 0, True)]
        texts = self._texts(examples, [s.documents for s in chosen])
        return [
            Answer(
                text,
                selection.text,
                tuple(example.candidates[i] for i in selection.documents),
                example.candidates,
                selection.documents,
                example.scores,
            )
            for example, selection, text in zip(examples, chosen, texts, strict=True)
        ]

    @cached_property
    def _selector(self) -> RolloutWorker | EncoderWorker:
        recipe = self.recipe
        if isinstance(recipe.selector, EncoderSelector):
            # What a frozen part makes of texts is kept for epochs, which nothing here has.
            whole = {"train": "all", "layers": None, "lora": None}
            selector = recipe.selector.model_copy(update=whole)
            recipe = recipe.model_copy(update={"selector": selector})
        return worker_class(recipe, "selector")(recipe, "selector", self.models["selector"])

    @cached_property
    def _generator(self) -> RolloutWorker:
        return RolloutWorker(self.recipe, "generator", self.models["generator"])

    def _texts(
        self, examples: Sequence[Example], chosen: Sequence[tuple[int, ...]]
    ) -> Sequence[str | None]:
        if self.recipe.generator.is_none:
            return [None] * len(examples)
        return self._generator.answer(examples, chosen)

    # --- documents ------------------------------------------------------------------------------

    def _found_each(self, asked: Sequence[Example]) -> list[Example | UserError]:
        """The questions with their candidates; an error in place of one that cannot be answered.

        Raises:
            NoReply: the retriever is away; it is not asked again for each question.
        """
        try:
            found: list[Example | UserError] = [*self._finder.find(asked)]
        except NoReply:
            raise
        except UserError as error:
            if len(asked) == 1:
                return [error]
            return [found for example in asked for found in self._found_each([example])]
        return [
            example if isinstance(example, UserError) or self._fits(example) else _too_long(example)
            for example in found
        ]

    def _fits(self, example: Example) -> bool:
        """Whether a question's prompts fit the contexts, with documents cut to their titles."""
        k = self.recipe.selector.documents
        titles = [Document(d.title, "") for d in example.candidates]
        longest = sorted(titles, key=lambda d: -len(d.title))[:k]
        try:
            for policy, writer in self._writers.items():
                if policy == "selector":
                    writer.select(example.question, titles, k)
                else:
                    writer.answer(example.question, longest)
        except UserError:
            return False
        return True

    @cached_property
    def _writers(self) -> dict[PolicyName, PromptWriter]:
        writers: dict[PolicyName, PromptWriter] = {}
        for policy in self.recipe.policies:
            section = self.recipe.policy(policy)
            if not isinstance(section, EncoderSelector):  # which cuts what is too long
                writers[policy] = prompt_writer(section, self.models[policy])
        return writers


def _asked(question: str) -> Example:
    return Example(id="question", question=question, answers=("",))


def _too_long(example: Example) -> Unanswerable:
    return Unanswerable(
        f"question {example.question[:80]!r} is too long for the model's context, even beside "
        "documents cut to their titles: ask it in fewer words"
    )


def load_pipeline(
    run: str | Path, iteration: int | None = None, say: Say = lambda text: None
) -> Pipeline:
    """A run's policies, ready to answer by transformers.

    Args:
        run: a run directory.
        iteration: of the checkpoint; by default the last, 0 is the warm start.
        say: told in a line what takes long.
    Raises:
        UserError: there is no run there, or it has no such checkpoint.
    """
    directory = RunDirectory.open(Path(run).absolute())
    recipe = localise(load_recipe(str(directory.path / "recipe.yaml")))
    _, models = policies_of(directory, recipe, iteration)
    # No engine to start for a question at a time.
    rollout = recipe.rollout.model_copy(update={"engine": "transformers"})
    return Pipeline(recipe.model_copy(update={"rollout": rollout}), models, say)
