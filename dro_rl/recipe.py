"""The recipe: every setting of an experiment, typed and strict. Imports no torch, Ray or vLLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from dro_rl.algorithm_sections import Algorithm, DroAlgorithm, IndependentAlgorithm
from dro_rl.data_sections import Data, FactsData
from dro_rl.errors import UserError
from dro_rl.policy_sections import (
    GeneratorSection,
    PolicySection,
    SelectorSection,
    check_shared_base,
    with_shared_base,
)
from dro_rl.retrieval_sections import Bm25Retrieval, GivenRetrieval, Retrieval
from dro_rl.reward_sections import RewardChoice, RewardSection, written_out
from dro_rl.sections import MAY_CHANGE, POLICIES, PolicyName, Section


class RolloutSection(Section):
    engine: Literal["vllm", "transformers"] = Field(
        default="vllm",
        description="transformers: slow and plain, for machines that vLLM does not support",
    )
    workers: Annotated[PositiveInt, MAY_CHANGE] = Field(default=1, description="selector engines")
    decoding: Literal["free", "distinct", "retriever"] = Field(
        default="free",
        description="distinct: only well-formed selections of distinct identifiers; retriever: no "
        "selector, the K documents that the retriever scores highest",
    )
    temperature: PositiveFloat = 1.0
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0, description="0: no limit")
    allow_biased_sampling: bool = False
    max_sequences: Annotated[PositiveInt, MAY_CHANGE] = Field(
        default=256, description="sequences an engine runs at once"
    )
    gpu_memory_utilization: Annotated[float, MAY_CHANGE] = Field(default=0.4, gt=0, le=1)
    cpu_cache_gib: Annotated[PositiveInt, MAY_CHANGE] = Field(
        default=1, description="key-value cache without a GPU [GiB]"
    )
    max_logp_gap: Annotated[PositiveFloat | None, MAY_CHANGE] = Field(
        default=None,
        description="largest gap of engine and learner on a token of the probe after a sync "
        "[nats]; by default 1e-4 in float32, 0.5 in bfloat16",
    )

    overlap: Literal[0, 1] = Field(
        default=0,
        description="1: the next iteration's selections are sampled while this one's are learned, "
        "with the weights of the iteration before",
    )
    max_staleness: int = Field(
        default=1,
        ge=0,
        description="how many versions of the weights a selection may be behind those that learn "
        "from it; an older one is sampled again",
    )

    @property
    def unchanged(self) -> bool:
        """Whether selections are sampled from the selector's own distribution."""
        return self.temperature == 1 and self.top_p == 1 and self.top_k == 0

    @property
    def on_policy(self) -> bool:
        """Whether that is, besides, the selector that is about to learn, so that p_s / q is 1."""
        return self.unchanged and not self.overlap

    @model_validator(mode="after")
    def _consistent(self) -> RolloutSection:
        if self.overlap > self.max_staleness:
            raise ValueError(
                "overlap: 1 samples one version behind: leave max_staleness at 1, or drop overlap"
            )
        if (self.top_p < 1 or self.top_k) and not self.allow_biased_sampling:
            raise ValueError(
                "top_p and top_k cut the support of the sampling distribution, so importance "
                "weights cannot correct them: drop them, or set allow_biased_sampling: true"
            )
        return self


Watched = Literal["em", "f1", "gold_recall", "bound"]
"""Figures of an evaluation by which an iteration is better than another."""


def best_of(summaries: Sequence[Mapping[str, Any]], metric: str) -> int:
    """The iteration of the first best of a run's evaluations so far.

    Raises:
        UserError: the metric is not defined on the run's questions.
    """
    values = [summary[metric] for summary in summaries]
    if None in values:
        raise UserError(
            f"{metric} is not defined on these questions (none has gold documents): name another "
            "in training.early_stop.metric or tracking.keep_best"
        )
    return max(range(len(values)), key=values.__getitem__)


class EarlyStop(Section):
    metric: Watched = "bound"
    patience: PositiveInt = Field(
        default=1, description="iterations without a new best before stopping"
    )

    def best(self, summaries: Sequence[Mapping[str, Any]]) -> int:
        """The iteration of the first best of a run's evaluations so far."""
        return best_of(summaries, self.metric)

    def stops(self, summaries: Sequence[Mapping[str, Any]]) -> bool:
        """Whether a run ends after these evaluations."""
        return len(summaries) - 1 - self.best(summaries) >= self.patience


class TrainingSection(Section):
    seed: int = Field(default=0, ge=0, le=2**31 - 1)
    iterations: Annotated[PositiveInt, MAY_CHANGE] = Field(
        default=5, description="one E-step and one M-step each"
    )
    questions_per_iteration: PositiveInt | Literal["all"] = "all"
    epochs: PositiveInt = Field(default=1, description="passes over an iteration's rollouts")
    batch_size: PositiveInt = Field(default=32, description="questions an optimiser step")
    tokens_per_microbatch: Annotated[PositiveInt, MAY_CHANGE] = Field(
        default=8192,
        description="tokens a forward pass, in whole questions (at least one); memory only",
    )
    weights: Literal["fresh", "frozen"] = Field(
        default="fresh",
        description="fresh: the generator's training pass also scores, at its weights of that "
        "step, where algorithm and reward allow it; frozen: all is scored before the first step",
    )
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = Field(default=0, ge=0, description="steps of linear learning-rate warm-up")
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: PositiveFloat = 1.0
    max_bad_steps: Annotated[int, MAY_CHANGE] = Field(
        default=3,
        ge=0,
        description="steps of a policy that a run may skip because their loss or gradient is not "
        "finite",
    )
    early_stop: Annotated[EarlyStop | None, MAY_CHANGE] = None
    checkpoint_seconds: Annotated[NonNegativeFloat, MAY_CHANGE] = Field(
        default=600,
        description="within an M-step, the learners' states are saved so often at most [s]; 0: "
        "after every step",
    )


class WarmupSection(Section):
    """Supervised warm-up: `dro-rl warmup` makes the policies that `dro-rl train` starts from."""

    pretraining: Literal["none", "facts", "corpus"] = Field(
        default="none",
        description="before it: the built-in world's curriculum, or language modelling",
    )
    pretraining_steps: PositiveInt | None = Field(
        default=None,
        description="most steps of it; by default until the curriculum is learned, or 1000 of "
        "language modelling",
    )
    pretraining_learning_rate: PositiveFloat = 1e-3
    steps: PositiveInt = Field(default=200, description="supervised steps of each policy")
    batch_size: PositiveInt = 32
    learning_rate: PositiveFloat = 1e-5
    teacher_temperature: PositiveFloat = Field(
        default=1.0,
        description="of the retriever's scores: the selector's teacher samples from them",
    )
    distractors: int = Field(
        default=1, ge=0, description="documents beside the gold ones for the generator"
    )


class EvaluationSection(Section):
    samples: PositiveInt = Field(default=8, description="selections a question for the bound")


class TrackingSection(Section):
    run_dir: str = "runs/dro"
    resume: Literal["never", "auto"] = Field(
        default="never",
        description="where run_dir holds a run already: never: refuse; auto: go on with it, so "
        "that one command begins a run and continues it",
    )
    keep_last: PositiveInt | None = Field(
        default=None,
        description="checkpoints that are kept; by default the policies of all iterations, with "
        "the optimiser states of the last two",
    )
    keep_best: Watched | None = Field(
        default=None,
        description="with keep_last: the policies of the iteration that is best by this are kept",
    )

    @model_validator(mode="after")
    def _something_to_keep(self) -> TrackingSection:
        if self.keep_best and not self.keep_last:
            raise ValueError("keep_best without keep_last: all are kept: leave it out")
        return self


class ClusterSection(Section):
    mode: Literal["ray", "local"] = Field(
        default="ray", description="local: one process, for debugging"
    )
    address: str | None = Field(
        default=None, description="of a running head; none starts Ray inside"
    )
    reward_workers: PositiveInt = 1
    start_timeout: PositiveFloat = Field(default=600, description="for engines to be ready [s]")
    call_timeout: PositiveFloat = Field(
        default=3600, description="for any one call [s]; one that takes longer ends the run"
    )
    heartbeat_timeout: PositiveFloat = Field(
        default=300,
        description="for a worker to answer, and for its call to use the processor [s]; one that "
        "does not is replaced",
    )
    max_failures: int = Field(
        default=3,
        ge=0,
        description="how often a run's learners are started again from its last checkpoint, and "
        "how often in a row a worker or a call of the other roles is tried again",
    )
    threads: PositiveInt = Field(default=1, description="CPU threads a process")


class Recipe(Section):
    """All settings of an experiment; README.md explains the sections."""

    data: Data
    retrieval: Retrieval
    selector: SelectorSection
    generator: GeneratorSection
    rollout: RolloutSection = RolloutSection()
    reward: RewardChoice = RewardSection(use="rewards/answer_likelihood.py")
    algorithm: Algorithm = DroAlgorithm()
    warmup: Annotated[WarmupSection, MAY_CHANGE] = WarmupSection()
    training: TrainingSection = TrainingSection()
    evaluation: EvaluationSection = EvaluationSection()
    tracking: Annotated[TrackingSection, MAY_CHANGE] = TrackingSection()
    cluster: Annotated[ClusterSection, MAY_CHANGE] = ClusterSection()

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
        self._check_sampling()
        self._check_ranks()
        if self.shares_base:
            self._check_shared_base()
        scratch = any(self.policy(p).init == "scratch" for p in POLICIES)
        if self.warmup.pretraining != "none" and not scratch:
            raise ValueError("warmup.pretraining is for a policy with init: scratch")
        return self

    def _check_shared_base(self) -> None:
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
        if algorithm.clips != "no" and self.selector.lora and self.selector.lora.dropout:
            raise ValueError(
                f"algorithm.kind: {algorithm.kind} compares the selector with the one that sampled "
                "without dropout: set selector.lora.dropout to 0"
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

    def policy(self, name: PolicyName) -> PolicySection:
        """The section of a policy."""
        return self.selector if name == "selector" else self.generator

    @property
    def watched(self) -> dict[str, Watched]:
        """The figures that decide which iterations are kept and when the run stops, by setting."""
        early, best = self.training.early_stop, self.tracking.keep_best
        return {
            **({"training.early_stop.metric": early.metric} if early else {}),
            **({"tracking.keep_best": best} if best else {}),
        }

    def resolved(self) -> dict[str, Any]:
        """Every setting, defaults included, as plain values."""
        return self.model_dump(mode="json")
