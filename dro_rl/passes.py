"""Questions divided among the ranks of a learner, and each rank's into forward passes that fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from dro_rl.errors import UserError
from dro_rl.policy.completion import AnyCompletion, AnyLikelihood
from dro_rl.policy.likelihood import batches
from dro_rl.policy.memory import is_out_of_memory
from dro_rl.ranks import Ranks, shares

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Question:
    """What a forward pass has to compute of one question, and its name for people."""

    name: str
    completions: Sequence[AnyCompletion]


class PassTooLarge(UserError):
    """A pass of one of several ranks did not fit into memory. The others wait for it and cannot be
    called back, so that all have to start again, with at most `tokens` in a pass."""

    def __init__(self, rank: int, cost: int) -> None:
        super().__init__(rank, cost)
        self.rank, self.cost, self.tokens = rank, cost, cost // 2

    def __str__(self) -> str:
        return f"out of memory in a forward pass of {self.cost} tokens on rank {self.rank}"


class Passes:
    """Takes questions through a model.

    All ranks are given the same questions, and all make the same number of passes: a layer's
    weights are gathered from all of them, whenever one needs it.

    Args:
        likelihood: of the model.
        ranks: that hold it together.
        tokens: most of them in a pass; fewer after memory has not sufficed.
    """

    def __init__(self, likelihood: AnyLikelihood, ranks: Ranks, tokens: int) -> None:
        self.likelihood, self.ranks, self.tokens = likelihood, ranks, tokens
        likelihood.checks_by_itself = ranks.size == 1

    def over(
        self,
        questions: Sequence[Question],
        work: Callable[[list[int]], T],
        idle: Callable[[int], object],
        forget: Callable[[], object] = lambda: None,
    ) -> list[T]:
        """Take every question through one pass; those without completions through none.

        Args:
            questions: the whole batch's.
            work: makes one pass, over the questions of these numbers.
            idle: makes a pass for the other ranks' sake, over this question, and adds nothing.
            forget: undoes what `work` has done: all of it is about to be done again.
        Returns:
            what `work` gave in each pass of each rank, the same on all ranks.
        Raises:
            UserError: one question alone does not fit into memory, or the check of several ranks.
            PassTooLarge: a pass of several ranks.
        """
        numbers = [i for i, q in enumerate(questions) if q.completions]
        numbers.sort(key=lambda i: max(map(len, questions[i].completions)))  # less padding
        if self.ranks.size > 1:
            self._check([c for i in numbers for c in questions[i].completions])
        done = None
        while done is None:
            done = self._attempt(questions, numbers, work, idle)
            if done is None:
                forget()
        return [result for rank in self.ranks.gather(done) for result in rank]

    def _check(self, completions: Sequence[AnyCompletion]) -> None:
        if not _fits(lambda: self.likelihood.check(completions)):
            raise UserError(
                f"out of memory on rank {self.ranks.rank} in the check of the shared-prefix "
                "forward, which takes four completions whatever training.tokens_per_microbatch "
                "is: raise the number of ranks, lower the policy's max_length, or set its "
                "likelihood: dense"
            )

    def _attempt(
        self,
        questions: Sequence[Question],
        numbers: list[int],
        work: Callable[[list[int]], T],
        idle: Callable[[int], object],
    ) -> list[T] | None:
        """None, with a smaller limit, where memory did not suffice."""
        plans = self._plans(questions, numbers)
        mine, done = plans[self.ranks.rank], list[T]()
        for part in mine:
            if not _fits(lambda part=part: done.append(work(part))):
                self._lower([questions[i] for i in part])
                return None
        for _ in range(max(map(len, plans)) - len(mine)):
            idle(numbers[0])
        return done

    def _plans(self, questions: Sequence[Question], numbers: list[int]) -> list[list[list[int]]]:
        """For every rank, the questions of each of its passes."""
        parts = [numbers]
        if self.ranks.size > 1:
            costs = [self.likelihood.cost(questions[i].completions) for i in numbers]
            parts = [[numbers[i] for i in s] for s in shares(costs, self.ranks.size)]
        plans = []
        for part in parts:
            groups = [questions[i].completions for i in part]
            plans.append([part[some] for some in batches(self.likelihood, groups, self.tokens)])
        return plans

    def _lower(self, part: Sequence[Question]) -> None:
        """The whole batch is to be done again: a backward pass that fails half-way leaves a part
        of its gradient behind."""
        cost = self.likelihood.cost([c for q in part for c in q.completions])
        if len(part) == 1:
            raise UserError(
                f"{part[0].name}: out of memory for this question alone ({cost} tokens in a "
                "forward pass): set gradient_checkpointing: true, lower algorithm.samples or "
                "max_length, or use a smaller model or more ranks"
            )
        if self.ranks.size > 1:
            raise PassTooLarge(self.ranks.rank, cost)
        self.tokens = cost // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        print(
            f"out of memory in a forward pass of {cost} tokens: this batch is done again, and all "
            f"from now on, with at most {self.tokens}; set training.tokens_per_microbatch to that",
            flush=True,
        )


def _fits(call: Callable[[], object]) -> bool:
    """Whether a call had enough memory. What it held is free by the time this returns."""
    try:
        call()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True
