"""Teaches a tiny Llama to read the built-in world: to point at documents, and to answer from them.

One model learns both skills and serves as the starting point of both policies. The order of the
lessons is what makes it learn in minutes on one core:

1. `repeat`: random sequences followed by themselves, until an induction head appears.
2. `look up`: a key is followed by the identifier or by the value of its document. Without the
   look-ups of values, and with punctuation as tokens, value accuracy stood at 0.85 after 270
   seconds of processor time; with both changes it passes 0.98 in 160 (values of three words: 330).
3. `read`: the prompts of `dro_rl.prompts`, with decks of 4, then 6, ... documents; several
   questions stand behind one deck, each with its completion, so that a deck is read once.

Muon trains the matrices and AdamW the rest: in trials, AdamW alone found no
induction head in six times the time. The selector's teacher is right except that it takes a rumour
for the truth at even odds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from dro_rl.data.facts.lessons import IGNORE, Lessons, Row
from dro_rl.data.facts.tokenizer import BOS_ID, EOS_ID, MAX_LENGTH, PAD_ID, make_tokenizer

WINDOW = 50  # steps over which accuracy is averaged and reported
MUON_LR, ADAMW_LR = 0.01, 2e-3
WARMUP = 30  # steps


class Figures(TypedDict):
    """Means over a window of steps: `loss` [nats a token], `identifier` and `value` accuracy;
    `step` is the number of steps done, `seconds` the processor time."""

    stage: str
    step: int
    loss: float
    identifier: float
    value: float
    seconds: float


class NotLearned(RuntimeError):
    """A stage of the curriculum reached its step ceiling without the accuracy that ends it."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One lesson: it ends when the mean accuracies of a window of steps reach the thresholds."""

    name: str
    deck: int  # documents
    identifier: float  # accuracy over needed identifiers (over all targets in "repeat")
    value: float  # accuracy over values
    max_steps: int


def curriculum(documents: int) -> list[Stage]:
    """The stages up to decks of `documents`."""
    sizes = [n for n in (4, 6, 8, 12, 16) if n < documents]
    return [
        Stage("repeat", 4, 0.85, 0.0, 1500),
        Stage("look up", 4, 0.9, 0.9, 2000),
        *(Stage(f"read {n}", n, 0.75, 0.9, 3000) for n in sizes),
        Stage(f"read {documents}", documents, 0.87, 0.98, 4000),
    ]


def make_batch(lessons: Lessons, stage: Stage, scale: float) -> list[Row]:
    """The rows of one step; `scale` multiplies their number."""
    n = stage.deck
    if stage.name == "repeat":
        shares = {lessons.repeat: 48}
    elif stage.name == "look up":
        shares = {lessons.repeat: 8, lambda: lessons.look_up(n): 20}
    else:
        shares = {
            lessons.repeat: 2,
            lambda: lessons.look_up(n): 3,
            lambda: lessons.select(n): 9,
            lambda: lessons.answer(lessons.rng.randint(2, n)): 12,
        }
    return [make() for make, rows in shares.items() for _ in range(max(1, round(scale * rows)))]


def make_model(
    tokenizer: PreTrainedTokenizerFast, hidden: int = 96, layers: int = 3, seed: int = 0
) -> LlamaForCausalLM:
    """A Llama with heads of size 32; 0.4M parameters by default."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 32,
        head_dim=32,
        max_position_embeddings=MAX_LENGTH,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
    )
    model = LlamaForCausalLM(config)
    for name, weight in model.named_parameters():
        if weight.ndim == 2 and "embed" not in name:
            small = name.endswith(("o_proj.weight", "down_proj.weight"))
            torch.nn.init.normal_(weight, std=(0.3 if small else 0.7) * hidden**-0.5)
    return model


def pretrain(
    out_dir: str | Path,
    *,
    seed: int = 0,
    documents: int = 8,
    value_words: int = 1,
    steps: int | None = None,
    scale: float = 1.0,
    report: Callable[[Figures], object] = lambda figures: None,
) -> Figures:
    """Train a model from scratch through the curriculum; save it in Hugging Face format.

    Args:
        documents: candidates a question that the selector should cope with, 4 to 20.
        value_words: words in a value, 1 to 4.
        steps: end after so many optimiser steps, learned or not; None learns all stages.
        scale: rows a step, as a share of the usual number (48 short ones, later about 26).
        report: receives the figures of every window of steps.
    Returns:
        The last window's figures.
    Raises:
        NotLearned: a stage reached its step ceiling.
    """
    tokenizer = make_tokenizer()
    student = _Student(make_model(tokenizer, seed=seed))
    lessons = Lessons(tokenizer, seed, value_words)
    for stage in curriculum(documents):
        for figures in _windows(student, lessons, stage, steps, scale):
            report(figures)
            if figures["identifier"] >= stage.identifier and figures["value"] >= stage.value:
                break
        student.model.save_pretrained(out_dir)
        tokenizer.save_pretrained(out_dir)
        if student.step == steps:
            break
    return figures


def _windows(
    student: _Student, lessons: Lessons, stage: Stage, steps: int | None, scale: float
) -> Iterator[Figures]:
    """Train on one stage, yielding the mean figures of each window of steps."""
    for _ in range(stage.max_steps // WINDOW):
        window = []
        while len(window) < WINDOW and student.step != steps:
            window.append(student.learn(make_batch(lessons, stage, scale)))
        loss, identifier, value = torch.tensor(window).nanmean(0).nan_to_num().tolist()
        yield {
            "stage": stage.name,
            "step": student.step,
            "loss": loss,
            "identifier": identifier,
            "value": value,
            "seconds": time.process_time() - student.start,
        }
        if student.step == steps:
            return
    raise NotLearned(
        f"stage {stage.name!r} is not learned after {stage.max_steps} steps: identifier accuracy "
        f"{identifier:.2f} (wanted {stage.identifier}), value accuracy {value:.2f} (wanted "
        f"{stage.value}); try another seed"
    )


class _Student:
    """A model and its optimisers."""

    def __init__(self, model: LlamaForCausalLM):
        self.model, self.step, self.start = model, 0, time.process_time()
        named = list(model.named_parameters())
        matrices = [p for name, p in named if p.ndim == 2 and "embed" not in name]
        rest = [p for name, p in named if p.ndim != 2 or "embed" in name]
        self.optimisers = [
            torch.optim.Muon(matrices, lr=MUON_LR, weight_decay=0.01),
            torch.optim.AdamW(rest, lr=ADAMW_LR, betas=(0.9, 0.95), weight_decay=0.0),
        ]
        self.schedules = [
            torch.optim.lr_scheduler.LinearLR(optimiser, 1 / WARMUP, total_iters=WARMUP)
            for optimiser in self.optimisers
        ]

    def learn(self, rows: Sequence[Row]) -> tuple[float, float, float]:
        """One step; the loss [nats a token], identifier and value accuracy before it."""
        length = max(len(row.ids) for row in rows)
        ids = torch.tensor([row.ids + [PAD_ID] * (length - len(row.ids)) for row in rows])
        labels = torch.tensor([row.labels + [IGNORE] * (length - len(row.ids)) for row in rows])
        kinds = [
            kind
            for row in rows
            for kind, t in zip(row.kinds, row.labels, strict=True)
            if t != IGNORE
        ]

        # Rows are padded on the right and attention is causal: no mask is needed. The vocabulary
        # is scored only where there is something to write.
        hidden = self.model.model(ids[:, :-1], use_cache=False).last_hidden_state
        written = labels[:, 1:] != IGNORE
        logits, targets = self.model.lm_head(hidden[written]), labels[:, 1:][written]
        loss = F.cross_entropy(logits, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for stepped in (*self.optimisers, *self.schedules):
            stepped.step()
        self.model.zero_grad()
        self.step += 1

        right = (logits.argmax(-1) == targets).float()
        kind = torch.tensor([ord(k) for k in kinds])
        return loss.item(), *(right[kind == ord(k)].mean().item() for k in "iv")
