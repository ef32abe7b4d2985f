"""Memory of a run whose policies are two adapters on one base, against two of their own.

    python benchmarks/shared_base.py

One iteration of `dro-rl train` on the built-in world, on Ray and vLLM, float32, LoRA of rank 8:
with the demo's selector (0.4M parameters) as base of both policies, and with random weights of 50M
and 200M. Figures are each process's peak of resident memory, as the run's metrics tell it;
"weights" is what one copy of the base takes. Both ways read the same questions and train adapters
of the same size.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from timing import prepare, table, write_results

prepare()

import torch  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "dro_rl" / "builtin" / "facts-selector"
LAYERS = {"50M": (640, 10), "200M": (1024, 16)}  # hidden size, layers
SETTINGS = (
    "data.train_questions=64",
    "data.evaluation_questions=8",
    "training.iterations=1",
    "training.questions_per_iteration=16",
    "training.batch_size=8",
    "rollout.max_sequences=32",
    "selector.init=null",
    "generator.init=null",
    "warmup.pretraining=none",
    "selector.lora.rank=8",
    "generator.lora.rank=8",
)


def make_base(size: str, folder: Path) -> None:
    """Random weights that read the built-in world's tokens."""
    hidden, layers = LAYERS[size]
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=hidden * 27 // 10,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def memory(base: Path, run: Path, *, shared: bool) -> dict[str, float]:
    """Peak by role [GiB] of one run."""
    generator = "null" if shared else str(base)
    command = [
        str(Path(sys.executable).parent / "dro-rl"),
        "train",
        "recipes/demo.yaml",
        *SETTINGS,
        f"selector.model={base}",
        f"generator.model={generator}",
        f"generator.share_base_with={'selector' if shared else 'null'}",
        f"tracking.run_dir={run}",
    ]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {k.removeprefix("memory/"): v for k, v in rows[-1].items() if k.startswith("memory/")}


def main() -> None:
    figures: dict[str, Any] = {}
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for size in ("0.4M", *LAYERS):
            base = TINY
            if size in LAYERS:
                base = Path(scratch) / size
                make_base(size, base)
            weights = sum(f.stat().st_size for f in base.glob("*.safetensors")) / 2**30
            for way in ("apart", "shared"):
                run = Path(scratch) / f"{size}-{way}"
                found = memory(base, run, shared=way == "shared")
                del found["trainer"]  # the same both ways, and holds no model
                figures[f"{size} {way}"] = {"weights": weights, **found}
                rows.append(
                    [
                        f"{size}, {way}",
                        f"{weights:.2f}",
                        str(len(found)),
                        ", ".join(f"{k.replace('_', ' ')} {v:.2f}" for k, v in found.items()),
                        f"{sum(found.values()):.2f}",
                    ]
                )
    head = ["base", "weights [GiB]", "processes", "peak of each [GiB]", "sum"]
    write_results("shared_base", figures, [table(head, rows)], "one run each")


if __name__ == "__main__":
    main()
