"""What a reward is: one class with `score`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

from dro_rl.records import Outcome

Need = Literal["likelihood", "answer"]
Scale = Literal["log", "linear"]


class Reward(ABC):
    """Scores what the generator makes of a selection.

    `scale`: "log" when `score` returns log r [nats], "linear" when it returns r >= 0.
    `needs`: what an `Outcome` must carry; what is not named is not computed.
    `remote`: whether `score` asks another machine. It is then called with whole batches alone,
    never from within a training step.

    Settings are the arguments of the constructor: of a `@dataclass`, its annotated fields.
    """

    scale: Scale = "linear"
    needs: tuple[Need, ...] = ()
    remote: bool = False

    @abstractmethod
    def score(self, outcomes: Sequence[Outcome]) -> list[float]:
        """One number an outcome, in order.

        Outcomes are of any number of questions, and each is scored for itself, by its question,
        its documents in order, and its likelihood and answer: one that has been scored before is
        not asked again.
        """
