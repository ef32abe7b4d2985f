"""Model FLOPs of a learner's steps: what the arithmetic needs, not what a kernel may repeat.

After appendix B of PaLM (arXiv 2204.02311) and section 2.1 of Kaplan et al. (arXiv 2001.08361): a
token costs 2 N forward and 4 N backward, N being the parameters of matrix products, and attention
over a context of T tokens 4 L d T and 8 L d T, L being layers and d heads times their dimension.
Causal masks are not taken off, as there. Three things are our own case: the embedding is a look-up
and costs nothing; the output head counts on tokens with logits alone, which are those of
completions; and under LoRA the frozen weights have no gradient, so a token costs 4 N. Adapters, a
value head, a frozen reference and recomputation under gradient checkpointing are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from dro_rl.model_folders import local_model
from dro_rl.policy.causal_lm import resolve_model
from dro_rl.policy.encoder_parts import train_last_layers
from dro_rl.sections.encoder import EncoderSelector


@dataclass(frozen=True, slots=True)
class ModelSize:
    """`body` parameters that every token meets, `head` that a token with logits does; the layers
    and the `width` (heads times their dimension) of attention."""

    body: int
    head: int
    layers: int
    width: int

    def training_flops(self, tokens: int, predicted: int, context: float, *, lora: bool) -> float:
        """Of one forward and backward pass.

        Args:
            tokens: through the model.
            predicted: of these, tokens of completions, with logits.
            context: mean length of the sequences that the tokens are in [tokens].
            lora: whether the weights are frozen.
        """
        weights = self.body * tokens + self.head * predicted
        attention = 12 * self.layers * self.width * context * tokens
        return (4 if lora else 6) * weights + attention


def model_size(name: str) -> ModelSize:
    """The sizes of a causal LM, a folder or hub name, from its configuration: no weights read."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(resolve_model(name), trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    embedding, output = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    text = config.get_text_config()
    heads = getattr(text, "num_attention_heads", 0)  # none: a recurrent model
    head_dim = getattr(text, "head_dim", None) or (text.hidden_size // heads if heads else 0)
    apart = {id(w): w.numel() for w in (embedding, output)}  # one, where they are tied
    return ModelSize(
        body=sum(p.numel() for p in model.parameters()) - sum(apart.values()),
        head=output.numel(),
        layers=text.num_hidden_layers,
        width=heads * head_dim,
    )


def encoder_size(section: EncoderSelector) -> ModelSize:
    """The sizes of a sentence encoder, from its configuration, its attention left aside. A head
    alone is a square matrix, which every text meets; of frozen layers, which have a forward pass
    alone, a third counts."""
    import torch
    from transformers import AutoConfig, AutoModel

    folder = local_model(section.model, "selector.model")
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if section.train == "head":
        return ModelSize(body=config.hidden_size**2, head=0, layers=0, width=0)
    with torch.device("meta"):
        model = AutoModel.from_config(config, trust_remote_code=False)
    if section.layers:
        train_last_layers(model, section.layers, section.model)
    embedding = model.get_input_embeddings().weight
    body = [p for p in model.parameters() if p is not embedding]
    learned = sum(p.numel() for p in body if section.lora or p.requires_grad)
    frozen = sum(p.numel() for p in body) - learned
    return ModelSize(learned + frozen // 3, 0, 0, 0)
