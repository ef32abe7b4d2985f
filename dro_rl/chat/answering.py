"""A trained pair that several ask at a time."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dro_rl.errors import UserError
from dro_rl.recipe import PolicyName, Recipe
from dro_rl.rollout.environment import engine_environment

if TYPE_CHECKING:  # see dro_rl.chat.wire
    from dro_rl.pipeline import Answer


@dataclass(frozen=True)
class Service:
    """What is served, and to whom.

    `recipe` is the run's, `models` each policy's folder or hub name, `name` what requests call the
    pair, `timeout` that of one request [s], and `token` what it has to bring, if anything.
    """

    recipe: Recipe
    models: Mapping[PolicyName, str]
    name: str
    host: str
    port: int
    timeout: float
    token: str | None


class Answering:
    """The pair in a thread of its own, since its engines are not made for several.

    Attributes:
        fault: what the last call ended with, if it was nobody's input but a fault of ours.
    """

    def __init__(self, service: Service) -> None:
        recipe = service.recipe
        os.environ.update(engine_environment(recipe.rollout, recipe.cluster.threads))
        from dro_rl.pipeline import Pipeline  # which imports torch

        self.fault: Exception | None = None
        self._thread = ThreadPoolExecutor(1)
        self._pipeline = Pipeline(recipe, service.models)
        self._thread.submit(self._pipeline.load).result()

    async def each(self, questions: list[str]) -> list[Answer | UserError]:
        """See `Pipeline.answer_each`."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._answer_each, questions)

    async def one(self, question: str) -> Answer | UserError:
        """The same of one."""
        return (await self.each([question]))[0]

    def _answer_each(self, questions: list[str]) -> list[Answer | UserError]:
        try:
            answers = self._pipeline.answer_each(questions)
        except Exception as error:
            self.fault = error
            raise
        self.fault = None
        return answers
