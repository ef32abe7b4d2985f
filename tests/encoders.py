"""Tiny random encoders of sentence-transformers, and recipes of a selector that is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    PreTrainedTokenizerFast,
)

from dro_rl.recipe import Recipe
from tests.models import make_word_tokenizer
from tests.tiny import WORDS

SPREAD = 8.0  # of a tiny encoder's scores: no selection is certain, and none is hopeless


def make_bi_encoder(folder: Path, *, seed: int = 0, context: int = 64) -> Path:
    """A BERT of random weights, mean pooling and a norm, as all-MiniLM-L6-v2 has them."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    bert = folder.with_name(f"{folder.name}-bert")
    torch.manual_seed(seed)
    BertModel(_config(context)).save_pretrained(bert)
    _tokenizer(context).save_pretrained(bert)
    transformer = Transformer(str(bert), max_seq_length=context)
    pooling = Pooling(transformer.get_embedding_dimension())
    modules: Any = [transformer, pooling, Normalize()]
    model = SentenceTransformer(modules=modules, device="cpu")
    model.save_pretrained(str(folder), create_model_card=False)
    return folder


def make_cross_encoder(folder: Path, *, labels: int = 1) -> Path:
    """A BERT of random weights that gives a pair one score."""
    torch.manual_seed(0)
    model = BertForSequenceClassification(_config(64, num_labels=labels))
    torch.nn.init.normal_(model.classifier.weight, std=0.1)
    model.save_pretrained(folder)
    _tokenizer(64).save_pretrained(folder)
    return folder


def make_encoder_recipe(model: Path, selector: dict[str, Any] | None = None, **sections) -> Recipe:
    """Without a generator, in this process; `selector` and sections override."""
    settings: dict[str, Any] = {
        "data": {"kind": "jsonl", "path": "unused.jsonl"},
        "retrieval": {"kind": "given", "candidates": 5},
        "selector": {
            "kind": "encoder",
            "model": str(model),
            "documents": 2,
            "scale": SPREAD,
            "learning_rate": 1e-3,
            "cache_dir": str(model.with_name("cache")),
            **(selector or {}),
        },
        "generator": "none",
        "reward": "rewards/gold_recall.py",
        "algorithm": {"samples": 4, "train": ["selector"]},
        "training": {"batch_size": 4, "tokens_per_microbatch": 300, "max_grad_norm": 1e9},
        "cluster": {"mode": "local"},
    }
    for name, changes in sections.items():
        old = settings.get(name)
        both = isinstance(changes, dict) and isinstance(old, dict)
        settings[name] = {**old, **changes} if both else changes
    return Recipe.model_validate(settings)


def _config(context: int, **more: Any) -> BertConfig:
    return BertConfig(
        vocab_size=len(_tokenizer(context)),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=context,
        initializer_range=0.5,
        **more,
    )


def _tokenizer(context: int) -> PreTrainedTokenizerFast:
    tokenizer = make_word_tokenizer(WORDS)
    tokenizer.model_max_length = context
    return tokenizer
