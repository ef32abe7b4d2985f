"""A trained pair at work: retrieve, select, answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import TracebackType

from dro_rl.checkpoint import policies_of
from dro_rl.data import load_examples
from dro_rl.errors import UserError
from dro_rl.normalise import normalise_question
from dro_rl.questions import with_candidates
from dro_rl.recipe import PolicyName, Recipe
from dro_rl.recipe_file import load_recipe, localise
from dro_rl.records import Document, Example
from dro_rl.retrieval import Retriever, open_retriever, with_ranking
from dro_rl.retrieval_sections import Bm25Retrieval, CorpusSection, HttpRetrieval
from dro_rl.rollout.encoder_worker import EncoderWorker, worker_class
from dro_rl.rollout.worker import RolloutWorker
from dro_rl.tracking.run_directory import RunDirectory

Say = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a pipeline found.

    `documents` are those that were selected, in the selector's order, out of `candidates`;
    `selection` is what the selector wrote, with 1-based identifiers of the candidates. Without a
    generator there is no text (None).
    """

    text: str | None
    selection: str
    documents: tuple[Document, ...]
    candidates: tuple[Document, ...]
    places: tuple[int, ...]


class Pipeline:
    """Answers questions with a run's policies, greedily, in this process, by transformers.

    A context manager: an index that was opened, and what it started, is given back at the end.

    Args:
        recipe: the run's; says how documents are found.
        models: each policy's folder or hub name.
        say: told in a line what takes long.
    """

    def __init__(
        self, recipe: Recipe, models: Mapping[PolicyName, str], say: Say = lambda text: None
    ) -> None:
        # No engine to start for a question at a time.
        rollout = recipe.rollout.model_copy(update={"engine": "transformers"})
        self.recipe = recipe.model_copy(update={"rollout": rollout})
        self.models, self.say = models, say
        self._open = ExitStack()

    def answer(self, question: str, documents: Sequence[Document] | None = None) -> Answer:
        """Retrieve, select, answer.

        Args:
            documents: to select from, instead of what the recipe's retriever finds.
        Raises:
            UserError: the run's documents come with its questions, and this is none of them; or
                there are fewer documents than a selection holds.
        """
        asked = Example(id="question", question=question, answers=("",))
        example = self._given(asked, documents) if documents is not None else self._found(asked)
        (rolled,) = self._selector.select([example], 1, 0, True)
        (selection,) = rolled.selections
        text = self._text(example, selection.documents)
        chosen = tuple(example.candidates[i] for i in selection.documents)
        return Answer(text, selection.text, chosen, example.candidates, selection.documents)

    def close(self) -> None:
        """Give back the index and what it started."""
        self._open.close()

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

    @cached_property
    def _selector(self) -> RolloutWorker | EncoderWorker:
        return worker_class(self.recipe, "selector")(
            self.recipe, "selector", self.models["selector"]
        )

    @cached_property
    def _generator(self) -> RolloutWorker:
        return RolloutWorker(self.recipe, "generator", self.models["generator"])

    def _text(self, example: Example, documents: tuple[int, ...]) -> str | None:
        if self.recipe.generator.is_none:
            return None
        (text,) = self._generator.answer([example], [documents])
        return text

    # --- documents ------------------------------------------------------------------------------

    def _given(self, asked: Example, documents: Sequence[Document]) -> Example:
        """The best N of documents that came with the question."""
        n = self.recipe.retrieval.candidates
        ranked = Bm25Retrieval(kind="bm25", corpus="own", candidates=n)
        recipe = self.recipe.model_copy(update={"retrieval": ranked})
        return with_candidates(recipe, [replace(asked, candidates=tuple(documents))], [])[0]

    def _found(self, asked: Example) -> Example:
        """The question with its candidates: from the recipe's retriever, or from the data where
        each question comes with its own."""
        retrieval = self.recipe.retrieval
        if isinstance(retrieval, HttpRetrieval):
            return with_candidates(self.recipe, [asked], [])[0]
        own = isinstance(retrieval, Bm25Retrieval) and retrieval.corpus == "own"
        if isinstance(retrieval, CorpusSection) and not own:
            (ranking,) = self._retriever.search([asked.question], retrieval.candidates)
            k = self.recipe.selector.documents
            return with_ranking(asked, ranking, retrieval, self.recipe.training.seed, k)
        known = {normalise_question(e.question): e for e in self._examples}
        if normalise_question(asked.question) not in known:
            raise UserError(
                "this run's documents come with its questions, and this question is none of them: "
                "give documents to select from with --documents FILE (JSON lines of title and text)"
            )
        return with_candidates(self.recipe, [known[normalise_question(asked.question)]], [])[0]

    @cached_property
    def _examples(self) -> list[Example]:
        split = load_examples(self.recipe.data, self.recipe.training.seed)
        return [*split.train, *split.evaluation]

    @cached_property
    def _retriever(self) -> Retriever:
        retrieval = self.recipe.retrieval
        assert isinstance(retrieval, CorpusSection)
        examples = [] if retrieval.corpus_path else self._examples
        return self._open.enter_context(open_retriever(retrieval, examples, self.say))


def load_pipeline(
    run: str | Path, iteration: int | None = None, say: Say = lambda text: None
) -> Pipeline:
    """A run's policies, ready to answer.

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
    return Pipeline(recipe, models, say)
