"""The recipe: every setting of an experiment, typed and strict. Imports no torch, Ray or vLLM."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    SerializeAsAny,
    field_validator,
    model_validator,
)

from dro_rl.sections.algorithm import Algorithm, DroAlgorithm, IndependentAlgorithm
from dro_rl.sections.base import MAY_CHANGE, POLICIES, PolicyName, Section
from dro_rl.sections.data import Data, FactsData
from dro_rl.sections.encoder import EncoderSelector, check_encoder_settings
from dro_rl.sections.policy import (
    AnyPolicy,
    GeneratorSection,
    NoGenerator,
    PolicySection,
    Selector,
    SelectorSection,
    check_shared_base,
    with_shared_base,
)
from dro_rl.sections.process import ClusterSection, RolloutSection
from dro_rl.sections.retrieval import Bm25Retrieval, GivenRetrieval, Retrieval
from dro_rl.sections.reward import RewardChoice, RewardSection, written_out
from dro_rl.sections.training import (
    EvaluationSection,
    TrackingSection,
    TrainingSection,
    WarmupSection,
    Watched,
)

_OF_ANSWERS = ("em", "f1", "gold_recall", "bound")


class Recipe(Section):
    """All settings of an experiment; README.md explains the sections."""

    data: Data
    retrieval: Retrieval
    selector: Selector
    generator: SerializeAsAny[GeneratorSection]
    rollout: RolloutSection = RolloutSection()
    reward: RewardChoice = RewardSection(use="rewards/answer_likelihood.py")
    algorithm: Algorithm = DroAlgorithm()
    warmup: Annotated[WarmupSection, MAY_CHANGE] = WarmupSection()
    training: TrainingSection = TrainingSection()
    evaluation: EvaluationSection = EvaluationSection()
    tracking: Annotated[TrackingSection, MAY_CHANGE] = TrackingSection()
    cluster: Annotated[ClusterSection, MAY_CHANGE] = ClusterSection()

    @classmethod
    def load(cls, name: str, *overrides: str) -> Recipe:
        """The recipe in a file, or the project's of that name: see `recipe_file.load_recipe`."""
        from dro_rl.recipe_file import load_recipe  # which needs this class

        return load_recipe(name, overrides)

    @model_validator(mode="before")
    @classmethod
    def _base_of_both(cls, settings: Any) -> Any:
        return with_shared_base(settings)

    @field_validator("algorithm", mode="before")
    @classmethod
    def _dro_unless_said_otherwise(cls, settings: Any) -> Any:
        if isinstance(settings, str):
            raise ValueError(f"write algorithm.kind={settings}, or algorithm={{kind: {settings}}}")
        return {"kind": "dro", **settings} if isinstance(settings, dict) else settings

    @field_validator("selector", mode="before")
    @classmethod
    def _causal_lm_unless_said_otherwise(cls, settings: Any) -> Any:
        return {"kind": "causal_lm", **settings} if isinstance(settings, dict) else settings

    @field_validator("generator", mode="before")
    @classmethod
    def _none_is_no_generator(cls, settings: Any) -> Any:
        return NoGenerator() if settings == "none" else settings

    @field_validator("reward", mode="before")
    @classmethod
    def _names_alone_will_do(cls, reward: Any) -> Any:
        return written_out(reward)

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        k, n = self.selector.documents, self.retrieval.candidates
        if k > n:
            raise ValueError(f"selector.documents ({k}) exceeds retrieval.candidates ({n})")
        if isinstance(self.data, FactsData) and n > self.data.documents:
            raise ValueError(
                f"retrieval.candidates ({n}) exceeds data.documents ({self.data.documents})"
            )
        own = isinstance(self.retrieval, GivenRetrieval) or (
            isinstance(self.retrieval, Bm25Retrieval) and self.retrieval.corpus == "own"
        )
        if isinstance(self.data, FactsData) and not own:
            raise ValueError(
                "each question of data.kind: facts is a world of its own, and the worlds "
                "contradict each other: set retrieval.kind: bm25 and retrieval.corpus: own"
            )
        if isinstance(self.data, FactsData):
            needed = 2 * self.data.value_words + 2  # two values, "and", the end
            if self.generator.max_new_tokens < needed:
                raise ValueError(
                    f"generator.max_new_tokens ({self.generator.max_new_tokens}) has no room for "
                    f"two values of data.value_words: {self.data.value_words}: raise it to "
                    f"{needed} or more"
                )
        if self.warmup.pretraining == "facts" and self.data.kind != "facts":
            raise ValueError("warmup.pretraining: facts belongs to data.kind: facts")
        per_token = isinstance(self.algorithm, DroAlgorithm) and self.algorithm.tau == "per_token"
        if per_token and self.generator.answers == "any":
            raise ValueError("algorithm.tau: per_token needs generator.answers: first")
        if isinstance(self.selector, EncoderSelector):
            truncates = self.rollout.top_p < 1 or self.rollout.top_k > 0
            check_encoder_settings(
                self.algorithm.kind, self.rollout.decoding, truncates, self.shares_base
            )
        if self.generator.is_none and "generator" in self.algorithm.train:
            raise ValueError(
                "generator: none leaves nothing to train there: set algorithm.train: [selector]"
            )
        self._check_watched()
        self._check_sampling()
        self._check_ranks()
        if self.shares_base:
            self._check_shared_base()
        scratch = any(self.policy(p).init == "scratch" for p in self.policies)
        if self.warmup.pretraining != "none" and not scratch:
            raise ValueError("warmup.pretraining is for a policy with init: scratch")
        return self

    def _check_watched(self) -> None:
        """What is watched must be what an evaluation of this recipe gives."""
        given = ("gold_recall", "reward") if self.generator.is_none else _OF_ANSWERS
        for setting, metric in self.watched.items():
            if metric not in given:
                why = "without a generator" if self.generator.is_none else "with a generator"
                raise ValueError(
                    f"{setting}: {metric} is not evaluated {why}: name " + " or ".join(given)
                )

    def _check_shared_base(self) -> None:
        assert isinstance(self.selector, SelectorSection)  # see above
        check_shared_base(self.selector, self.generator)
        if self.algorithm.kind == "trl_grpo":
            raise ValueError(
                "algorithm.kind: trl_grpo trains a model of TRL's own: leave out "
                "generator.share_base_with"
            )
        if self.cluster.reward_workers > 1:
            raise ValueError(
                "with generator.share_base_with the process that learns also scores, so there is "
                "one: leave cluster.reward_workers at 1"
            )

    def _check_sampling(self) -> None:
        algorithm, rollout = self.algorithm, self.rollout
        if not rollout.unchanged and "selector" not in algorithm.train:
            raise ValueError(
                "rollout.temperature, top_p and top_k are corrected by the selector learner's "
                "log-probabilities, so selector must be in algorithm.train"
            )
        if not rollout.unchanged and algorithm.kind not in ("dro", "maxrl", "reinforce"):
            raise ValueError(
                f"algorithm.kind: {algorithm.kind} compares the selector with the one that "
                "sampled, not with another distribution: leave rollout.temperature at 1, without "
                "top_p and top_k"
            )
        if rollout.overlap and algorithm.kind in ("independent", "trl_grpo"):
            raise ValueError(
                f"rollout.overlap: algorithm.kind: {algorithm.kind} needs the selections of the "
                "selector that learns from them: leave it at 0"
            )
        if rollout.decoding == "retriever" and "selector" in algorithm.train:
            raise ValueError(
                "rollout.decoding: retriever selects without the selector, which then has nothing "
                "to learn: set algorithm.train: [generator]"
            )
        if algorithm.kind == "trl_grpo" and self.selector.lora and self.selector.lora.quantize:
            raise ValueError(
                "algorithm.kind: trl_grpo trains a model of TRL's own: leave out "
                "selector.lora.quantize"
            )
        if isinstance(algorithm, IndependentAlgorithm):
            if rollout.decoding != "free":
                raise ValueError(
                    "algorithm.kind: independent scores each document alone, so rollout.decoding "
                    "has no say: leave it out"
                )
            if algorithm.samples > self.retrieval.candidates:
                raise ValueError(
                    f"algorithm.samples ({algorithm.samples}) exceeds retrieval.candidates "
                    f"({self.retrieval.candidates}), and kind: independent scores each once"
                )
        if algorithm.kind == "trl_grpo" and rollout.decoding != "free":
            raise ValueError(
                "algorithm.kind: trl_grpo samples with transformers' generate: rollout.decoding "
                f"must be free, not {rollout.decoding}"
            )
        lora = self.selector.lora
        compares = algorithm.clips != "no" or algorithm.restrained
        if compares and lora and lora.dropout:
            raise ValueError(
                f"algorithm.kind: {algorithm.kind}{' with kl' * algorithm.restrained} compares the "
                "selector with one that has no dropout: set selector.lora.dropout to 0"
            )

    def _check_ranks(self) -> None:
        several = [p for p in self.algorithm.train if self.policy(p).ranks > 1]
        if several and self.cluster.mode == "local":
            raise ValueError(
                f"{several[0]}.ranks: several processes need cluster.mode: ray; in one process it "
                "is 1"
            )
        if several and self.algorithm.kind == "trl_grpo":
            raise ValueError(f"{several[0]}.ranks: algorithm.kind: trl_grpo trains in one process")

    @property
    def decoding(self) -> Literal["free", "distinct", "independent", "retriever"]:
        """How selections are made."""
        independent = self.algorithm.kind == "independent"
        return "independent" if independent else self.rollout.decoding

    @property
    def shares_base(self) -> bool:
        """Whether both policies are adapters on one base model."""
        return self.generator.share_base_with is not None

    @property
    def policies(self) -> tuple[PolicyName, ...]:
        """Those that there are: a generator is optional."""
        return ("selector",) if self.generator.is_none else POLICIES

    def policy(self, name: PolicyName) -> AnyPolicy:
        """The section of a policy."""
        return self.selector if name == "selector" else self.generator

    def causal_lm(self, name: PolicyName) -> PolicySection:
        """The section of a policy that is a causal LM."""
        section = self.policy(name)
        assert isinstance(section, PolicySection)
        return section

    @property
    def watched(self) -> dict[str, Watched]:
        """The figures that decide which iterations are kept and when the run stops, by setting."""
        early, best = self.training.early_stop, self.tracking.keep_best
        return {
            **({"training.early_stop.metric": early.metric} if early else {}),
            **({"tracking.keep_best": best} if best else {}),
        }

    def evaluates(self, iteration: int) -> bool:
        """Whether held-out questions are evaluated after an iteration; 0 is the warm start."""
        last = self.training.iterations
        return iteration % self.evaluation.every == 0 or iteration == last

    def counting(self, summaries: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """The evaluations by which a run stops: those that the recipe asks for. Others were made
        by `dro-rl evaluate`, or when another iteration was the last: a run goes on as without."""
        return [summary for summary in summaries if self.evaluates(summary["iteration"])]

    def resolved(self) -> dict[str, Any]:
        """Every setting, defaults included, as plain values."""
        return self.model_dump(mode="json")
