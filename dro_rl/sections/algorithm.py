"""The recipe's `algorithm` section: one class an algorithm, its options and what they must be.

docs/method.md has the mathematics; `dro_rl/algorithms/NAME.py` the coefficients.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from dro_rl.sections.base import PolicyName, Rate, Section

Clip = Annotated[float, Field(gt=0, lt=1)]


class _Algorithm(Section):
    samples: int = Field(default=8, ge=1, description="m, selections a question")
    train: list[PolicyName] = Field(default=["selector", "generator"], min_length=1)

    clips: ClassVar[Literal["no", "tokens", "selections"]] = "no"
    """Whether the selector's loss is a clipped ratio to the policy that sampled, and of what."""

    @property
    def restrained(self) -> bool:
        """Whether our loss holds the selector near the one that training starts with."""
        return False

    @model_validator(mode="after")
    def _names_each_policy_once(self) -> _Algorithm:
        if len(set(self.train)) != len(self.train):
            raise ValueError("train names a policy twice")
        return self


class _Sampling(_Algorithm):
    """An algorithm whose selections are draws from the selector."""

    kl: NonNegativeFloat = Field(
        default=0.0,
        description="weight of the selector's divergence from the one that training starts with: "
        "where the reward says nothing, it stays as it was",
    )

    @property
    def restrained(self) -> bool:
        return self.kl > 0


class _WithAGroup(_Algorithm):
    """An algorithm whose baseline is made of a question's other selections."""

    @model_validator(mode="after")
    def _more_than_one(self) -> _WithAGroup:
        if self.samples == 1 and "selector" in self.train:
            raise ValueError(
                f"kind: {getattr(self, 'kind', '')} compares the selections of a question with "
                "each other, and samples: 1 leaves nothing to compare: every advantage would be "
                "0. Set samples to 2 or more"
            )
        return self


class _ExpectedReward(_Sampling):
    """An algorithm that maximises the expectation of the reward."""

    maximise: Literal["reward", "log_reward"] = Field(
        default="reward",
        description="E[r], or E[log r] (for a likelihood: the evidence lower bound)",
    )


class DroAlgorithm(_Sampling):
    """DRO, arXiv 2505.03075."""

    kind: Literal["dro"] = "dro"
    tau: PositiveFloat | Literal["per_token"] = Field(
        default=1.0, description="divides log-likelihoods before weighting; per_token: |y|"
    )
    baseline: Literal["none", "uniform"] = Field(
        default="none",
        description="uniform: subtract 1/m from the selector's weights (less variance)",
    )
    min_effective_sample_size: float | None = Field(
        default=None,
        ge=1,
        description="a question whose weights have less gets a higher tau of its own",
    )

    @model_validator(mode="after")
    def _sensible(self) -> DroAlgorithm:
        if self.baseline == "uniform" and self.samples == 1 and "selector" in self.train:
            raise ValueError("baseline: uniform with samples: 1 leaves every weight at 0")
        if (self.min_effective_sample_size or 0) > self.samples:
            raise ValueError(
                f"min_effective_sample_size ({self.min_effective_sample_size}) exceeds samples "
                f"({self.samples}), which is the most it can be"
            )
        return self


class MaxrlAlgorithm(_WithAGroup, _Sampling):
    """MaxRL, arXiv 2602.02710."""

    kind: Literal["maxrl"]


class GrpoAlgorithm(_WithAGroup, _ExpectedReward):
    """GRPO, arXiv 2402.03300; `scale: none` is Dr. GRPO, arXiv 2503.20783."""

    kind: Literal["grpo"]
    scale: Literal["std", "none"] = Field(
        default="std",
        description="std: divide by the group's deviation and a selection's length; none: Dr. GRPO",
    )
    clip: Clip = 0.2
    clips = "tokens"


class RlooAlgorithm(_WithAGroup, _ExpectedReward):
    """RLOO, arXiv 2402.14740."""

    kind: Literal["rloo"]
    clip: Clip = 0.2
    clips = "selections"


class ReinforceAlgorithm(_ExpectedReward):
    """REINFORCE with a running baseline, Williams 1992."""

    kind: Literal["reinforce"]
    decay: Rate = Field(default=0.9, description="of the running mean reward, an iteration")


class PpoAlgorithm(_ExpectedReward):
    """PPO, arXiv 1707.06347, with GAE, arXiv 1506.02438."""

    kind: Literal["ppo"]
    clip: Clip = 0.2
    gae_lambda: Rate = 0.95
    normalise: bool = Field(default=True, description="advantages to mean 0 and deviation 1")
    value_weight: NonNegativeFloat = Field(default=0.1, description="of the value head's loss")
    value_clip: PositiveFloat | None = Field(
        default=0.2,
        description="how far a value may move from that at sampling, in the unit of what is "
        "maximised; null: no limit, which maximise: log_reward needs",
    )
    clips = "tokens"


class IndependentAlgorithm(_WithAGroup):
    """Independent top-k marginalisation: RAG, arXiv 2005.11401; REPLUG; EMDR2."""

    kind: Literal["independent"]


class TrlGrpoAlgorithm(_WithAGroup, _ExpectedReward):
    """TRL's own GRPOTrainer on the selector: an outside arm of comparisons."""

    kind: Literal["trl_grpo"]
    train: list[PolicyName] = Field(default=["selector"], min_length=1)
    scale: Literal["std", "none"] = "std"
    clip: Clip = 0.2

    @property
    def restrained(self) -> bool:
        return False  # TRL has a loss of its own

    @model_validator(mode="after")
    def _selector_alone(self) -> TrlGrpoAlgorithm:
        if self.train != ["selector"]:
            raise ValueError("kind: trl_grpo trains the selector alone: train: [selector]")
        return self


Algorithm = Annotated[
    DroAlgorithm
    | MaxrlAlgorithm
    | GrpoAlgorithm
    | RlooAlgorithm
    | ReinforceAlgorithm
    | PpoAlgorithm
    | IndependentAlgorithm
    | TrlGrpoAlgorithm,
    Field(discriminator="kind"),
]
