"""The documents that a question is answered from, found as the recipe says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property

from dro_rl.data import load_examples
from dro_rl.errors import UserError
from dro_rl.normalise import normalise_question
from dro_rl.questions import with_candidates
from dro_rl.recipe import Recipe
from dro_rl.records import Document, Example
from dro_rl.retrieval import Retriever, open_retriever, with_ranking
from dro_rl.sections.retrieval import Bm25Retrieval, CorpusSection, HttpRetrieval


class Unanswerable(UserError):
    """It is the question, and nothing of ours, for which there is no answer."""


class Finder:
    """Finds candidates for questions; `close` it at the end.

    Args:
        recipe: says where.
        say: told in a line what takes long.
    """

    def __init__(self, recipe: Recipe, say: Callable[[str], object]) -> None:
        self.recipe, self.say = recipe, say
        self._open = ExitStack()

    def open(self) -> None:
        """The index now, where there is one, and not with the first question."""
        if self._searches:
            _ = self._retriever

    def close(self) -> None:
        """Give back the index and what it started."""
        self._open.close()

    def given(self, asked: Example, documents: Sequence[Document]) -> Example:
        """The best N of documents that came with the question."""
        n = self.recipe.retrieval.candidates
        ranked = Bm25Retrieval(kind="bm25", corpus="own", candidates=n)
        recipe = self.recipe.model_copy(update={"retrieval": ranked})
        return with_candidates(recipe, [replace(asked, candidates=tuple(documents))], [])[0]

    def find(self, asked: Sequence[Example]) -> list[Example]:
        """The questions with their candidates: from the recipe's retriever, or from the data where
        each question comes with its own.

        Raises:
            Unanswerable: it does, and this is none of the data's questions.
            NoReply: the retriever is a server, and away.
        """
        retrieval = self.recipe.retrieval
        if isinstance(retrieval, HttpRetrieval):
            return with_candidates(self.recipe, asked, [])
        if self._searches:
            rankings = self._retriever.search([e.question for e in asked], retrieval.candidates)
            k, seed = self.recipe.selector.documents, self.recipe.training.seed
            return [
                with_ranking(example, ranking, retrieval, seed, k)
                for example, ranking in zip(asked, rankings, strict=True)
            ]
        return with_candidates(self.recipe, [self._known(e.question) for e in asked], [])

    def _known(self, question: str) -> Example:
        known = self._examples_by_question.get(normalise_question(question))
        if known is None:
            raise Unanswerable(
                "this run's documents come with its questions, and this question is none of them: "
                "give documents to select from: dro-rl answer RUN QUESTION --documents FILE (JSON "
                "lines of title and text)"
            )
        return known

    @property
    def _searches(self) -> bool:
        """Whether the recipe's retriever searches a corpus here."""
        retrieval = self.recipe.retrieval
        own = isinstance(retrieval, Bm25Retrieval) and retrieval.corpus == "own"
        return isinstance(retrieval, CorpusSection) and not own

    @cached_property
    def _examples(self) -> list[Example]:
        split = load_examples(self.recipe.data, self.recipe.training.seed)
        return [*split.train, *split.evaluation]

    @cached_property
    def _examples_by_question(self) -> dict[str, Example]:
        return {normalise_question(e.question): e for e in self._examples}

    @cached_property
    def _retriever(self) -> Retriever:
        retrieval = self.recipe.retrieval
        assert isinstance(retrieval, CorpusSection)
        examples = [] if retrieval.corpus_path else self._examples
        return self._open.enter_context(open_retriever(retrieval, examples, self.say))
