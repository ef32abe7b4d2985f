"""The recipe's `rollout` and `cluster` sections: engines, and the processes of a run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    Field,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from dro_rl.sections.base import MAY_CHANGE, Section


class RolloutSection(Section):
    engine: Literal["vllm", "transformers"] = Field(
        default="vllm",
        description="transformers: slow and plain, for machines that vLLM does not support",
    )
    workers: Annotated[PositiveInt, MAY_CHANGE] = Field(default=1, description="selector engines")
    tensor_parallel: Annotated[PositiveInt, MAY_CHANGE] = Field(
        default=1,
        description="GPUs, whole ones, that the model of each vLLM engine is divided among; of "
        "both policies",
    )
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
        "[nats]; by default 1e-4 in float32, in bfloat16 0.5 and 0.01 of an encoder",
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
        if self.tensor_parallel > 1 and self.engine == "transformers":
            raise ValueError(
                "tensor_parallel divides a model among vLLM's processes: leave it at 1 with "
                "engine: transformers"
            )
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
