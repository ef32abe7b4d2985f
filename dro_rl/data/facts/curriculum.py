"""Teaches a tiny Llama to read the built-in world: to point at documents, and to answer from them.

One model learns both skills and serves as the starting point of both policies. The order of the
lessons is what makes it learn in minutes on one core:

1. `repeat`: random sequences followed by themselves, until an induction head appears.
2. `look up`: a key is followed by the identifier or by the value of its document.
3. `read`: the prompts of `dro_rl.prompts`, with decks of 4, then 6, ... documents; several
   questions stand behind one deck, each with its completion, so that a deck is read once.

Muon trains the matrices and AdamW the rest: AdamW alone found no induction head in six times the
time. The selector's teacher is right except that it takes a rumour for the truth at even odds.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from dro_rl.data.facts import world
from dro_rl.data.facts.tokenizer import MAX_LENGTH, make_tokenizer
from dro_rl.data.facts.world import Fact
from dro_rl.prompts import PLAIN, PromptWriter, write_selection

SELECTED = 2  # identifiers in a selection
RUMOURS = 0.15
TURNS = 6  # questions behind one deck
WINDOW = 50  # steps over which accuracy is averaged and reported
MUON_LR, ADAMW_LR = 0.01, 2e-3
WARMUP = 30  # steps
IGNORE = -100

Report = Callable[[dict[str, float | str]], None]


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


@dataclass
class Row:
    """A training sequence; `labels` are IGNORE except where the model should write, and `kinds`
    say what stands there: "i" a needed identifier, "v" a value, "-" anything else."""

    ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)

    def read(self, ids: Sequence[int]) -> None:
        """Append tokens to condition on."""
        self.ids += ids
        self.labels += [IGNORE] * len(ids)
        self.kinds += "-" * len(ids)

    def write(self, ids: Sequence[int], kinds: str) -> None:
        """Append tokens to learn; `kinds` is padded with "-"."""
        self.ids += ids
        self.labels += ids
        self.kinds += kinds.ljust(len(ids), "-")


class Lessons:
    """Makes training rows in the very tokens of the policies' prompts."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, seed: int):
        self.tokenizer = tokenizer
        self.writer = PromptWriter(tokenizer, "plain", MAX_LENGTH)
        self.rng = random.Random(f"facts/curriculum/{seed}")

    def repeat(self, longest: int = 24) -> Row:
        """Random tokens, then the same again; the second copy is to be written."""
        first = len(self.tokenizer.all_special_ids)
        words = range(first, len(self.tokenizer))
        copy = self.rng.choices(words, k=self.rng.randint(6, longest))
        row = Row()
        row.read([self.tokenizer.bos_token_id, *copy, copy[0]])
        row.write(copy[1:], "i" * (len(copy) - 1))
        return row

    def look_up(self, deck: int) -> Row:
        """The key alone, right before what it names: "Selection: the Kovac birthplace [3]", and
        "Answer: the Kovac birthplace Lyon"."""
        facts = world.draw_facts(self.rng, deck, RUMOURS)
        row = self._deck(facts)
        undisputed = [f for f in facts if not f.is_rumour and not _rumours(facts, f)]
        turns = [(task, fact) for task in ("Selection:", "Answer:") for fact in undisputed]
        for task, fact in self.rng.sample(turns, min(TURNS, len(turns))):
            key = f"the {fact.person} {self.rng.choice(fact.relation.words)}"
            row.read(self._encode(f"{task} {key}"))
            if task == "Selection:":
                row.write(self._encode(f"[{facts.index(fact) + 1}]"), "i")
            else:
                row.write(self._encode(fact.value), "v")
        return row

    def select(self, deck: int, turns: int = TURNS) -> Row:
        """Selections; what a one-part question leaves over goes to the same person's documents."""
        facts = world.draw_facts(self.rng, deck, RUMOURS)
        row = self._deck(facts)
        for _ in range(turns):
            asked = world.draw_question(self.rng, facts)
            chosen = [facts.index(self.rng.choice([f, *_rumours(facts, f)])) for f in asked]
            while len(chosen) < SELECTED:
                rest = [i for i in range(deck) if i not in chosen]
                near = [i for i in rest if facts[i].person == asked[0].person]
                chosen.append(self.rng.choice(near or rest))
            self._turn(row, "select", asked)
            kinds = "i-i-" if len(asked) > 1 else "i---"
            row.write(self.writer.completion(write_selection(chosen)), kinds)
        return row

    def answer(self, deck: int, turns: int | None = None) -> Row:
        """Answers from `deck` documents, rumours about other facts among them. Few turns behind a
        small deck: a question asked before is answered by copying."""
        facts = world.draw_facts(self.rng, max(4, deck), RUMOURS)
        true = next(f for f in facts if not f.is_rumour)
        others = [f for f in facts if f is not true]
        facts = self.rng.sample([true, *self.rng.sample(others, deck - 1)], deck)
        row = self._deck(facts)
        for _ in range(turns or min(TURNS, 1 + deck // 2)):
            asked = world.draw_question(self.rng, facts)
            self._turn(row, "answer", asked)
            kinds = "v-v-" if len(asked) > 1 else "v-"
            row.write(self.writer.completion(world.write_answer(asked)), kinds)
        return row

    def batch(self, stage: Stage, scale: float = 1.0) -> list[Row]:
        """The rows of one step; `scale` multiplies their number."""
        n = stage.deck
        if stage.name == "repeat":
            shares = {self.repeat: 48}
        elif stage.name == "look up":
            shares = {self.repeat: 8, lambda: self.look_up(n): 20}
        else:
            shares = {
                self.repeat: 2,
                lambda: self.look_up(n): 3,
                lambda: self.select(n): 9,
                lambda: self.answer(self.rng.randint(2, n)): 12,
            }
        return [make() for make, rows in shares.items() for _ in range(max(1, round(scale * rows)))]

    def _deck(self, facts: Sequence[Fact]) -> Row:
        documents = [fact.document(self.rng) for fact in facts]
        prompt = self.writer.select("", documents, SELECTED).token_ids
        empty = self._encode(PLAIN["select"].format(documents="", question=""))
        row = Row()
        row.read(prompt[: -len(empty)])
        return row

    def _turn(self, row: Row, task: str, asked: Sequence[Fact]) -> None:
        question = world.write_question(self.rng, asked)
        row.read(self._encode(PLAIN[task].format(documents="", question=question)))

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids


def _rumours(facts: Sequence[Fact], truth: Fact) -> list[Fact]:
    key = truth.person, truth.relation
    return [f for f in facts if f.is_rumour and (f.person, f.relation) == key]


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
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
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
    steps: int | None = None,
    scale: float = 1.0,
    report: Report = lambda figures: None,
) -> dict[str, float | str]:
    """Train a model from scratch through the curriculum; save it in Hugging Face format.

    Args:
        documents: candidates a question that the selector should cope with, 4 to 20.
        steps: end after so many optimiser steps, learned or not; None learns all stages.
        scale: rows a step, as a share of the usual number (48 short ones, later about 26).
        report: receives the figures of every window of steps.
    Returns:
        The last window's figures: `stage`, `step`, `loss` [nats a token], the accuracies
        `identifier` and `value`, and `seconds` of processor time.
    Raises:
        NotLearned: a stage reached its step ceiling.
    """
    tokenizer = make_tokenizer()
    student = _Student(make_model(tokenizer, seed=seed))
    lessons = Lessons(tokenizer, seed)
    figures: dict[str, float | str] = {}
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
    student: _Student, lessons: Lessons, stage: Stage, steps: int | None, scale: float = 1.0
) -> Iterator[dict[str, float | str]]:
    """Train on one stage, yielding the mean figures of each window of steps."""
    for _ in range(stage.max_steps // WINDOW):
        window = []
        while len(window) < WINDOW and student.step != steps:
            window.append(student.learn(lessons.batch(stage, scale)))
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
        ids = torch.tensor([row.ids + [0] * (length - len(row.ids)) for row in rows])
        labels = torch.tensor([row.labels + [IGNORE] * (length - len(row.ids)) for row in rows])
        kinds = [kind for row in rows for kind, t in zip(row.kinds, row.labels) if t != IGNORE]

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
