"""The recipe's `selector: {kind: encoder}`: a sentence encoder that scores candidates."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from dro_rl.sections.base import MAY_CHANGE, Section
from dro_rl.sections.lora import Lora

_ALGORITHMS = ("dro", "maxrl", "grpo", "rloo", "reinforce")


class EncoderSelector(Section):
    """A bi-encoder or cross-encoder of sentence-transformers. Its policy is Plackett-Luce: K picks
    without replacement, each a softmax of the scores of what is left."""

    kind: Literal["encoder"]
    model: str = Field(description="what training starts from: a folder or a hub name")
    init: str | None = Field(
        default=None,
        description="what `dro-rl warmup` makes `model` from: a folder or a hub name; without it "
        "`model` is used as it is",
    )
    documents: PositiveInt = Field(default=5, description="K, documents a selection holds")
    conditional: bool = Field(
        default=False,
        description="score anew after each pick, with the picked text appended to the question: "
        "what the second document is to be may stand in the first",
    )
    scale: PositiveFloat | None = Field(
        default=None,
        description="multiplies similarities before the softmax; by default 20 for a bi-encoder's "
        "cosine, as in sentence-transformers' in-batch loss, and 1 for other scores",
    )
    train: Literal["all", "last_layers", "head"] = Field(
        default="all",
        description="last_layers: as many transformer layers as `layers` says, and what comes "
        "after them; head: a linear map after a frozen bi-encoder, whose vectors are computed "
        "once a text; saved as a Dense module",
    )
    layers: PositiveInt | None = Field(
        default=None, description="transformer layers that learn with train: last_layers"
    )
    lora: Lora | None = Field(
        default=None, description="adapters of the transformer learn, and its weights do not"
    )
    cache_dir: Annotated[str, MAY_CHANGE] = Field(
        default="~/.cache/dro_rl/retrieval",
        description="where the vectors of train: head are kept, for later runs too",
    )
    max_length: PositiveInt | None = Field(
        default=None,
        description="tokens of a text (of a cross-encoder, of question and document together); by "
        "default, and at most, the encoder's own limit; longer ones are cut, and counted",
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="of forward and backward passes; weights that learn are float32",
    )
    learning_rate: PositiveFloat = 2e-5

    # What the loop reads of every policy, and no recipe decides here.
    ranks: ClassVar[int] = 1

    @model_validator(mode="after")
    def _one_part_learns(self) -> EncoderSelector:
        if (self.layers is not None) != (self.train == "last_layers"):
            raise ValueError(
                "train: last_layers and layers, how many of them, go together: "
                + ("leave layers out" if self.layers else "add layers: 2")
            )
        if self.dtype == "bfloat16" and self.train == "head":
            raise ValueError(
                "train: head reads vectors that are computed once, in float32: leave out dtype"
            )
        if self.lora and self.train != "all":
            raise ValueError(f"lora is what learns: leave out train: {self.train}")
        if self.lora and (self.lora.quantize or self.lora.dropout):
            raise ValueError(
                "lora of an encoder is in float32, and without dropout: leave out lora.quantize "
                "and lora.dropout"
            )
        return self


def check_encoder_settings(
    algorithm: str, decoding: str, truncates: bool, shares_base: bool
) -> None:
    """Refuse settings that are of selectors that are causal LMs.

    Args:
        algorithm: its kind.
        decoding: the recipe's `rollout.decoding`.
        truncates: whether it samples with top-p or top-k.
    Raises:
        ValueError: there is one.
    """
    if algorithm not in _ALGORITHMS:
        raise ValueError(
            f"algorithm.kind: {algorithm} is for a selector that is a causal LM: an encoder takes "
            + ", ".join(_ALGORITHMS)
        )
    if decoding != "free":
        raise ValueError(
            "rollout.decoding: an encoder picks distinct documents by itself: leave it out"
        )
    if truncates:
        raise ValueError("rollout.top_p and top_k are of tokens, and an encoder samples none")
    if shares_base:
        raise ValueError("generator.share_base_with: an encoder has no base to share: leave it out")
