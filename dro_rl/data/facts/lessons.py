"""Training rows that teach reading the built-in world, in the very tokens of the prompts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerFast

from dro_rl.data.facts import world
from dro_rl.data.facts.tokenizer import BOS_ID, MAX_LENGTH, UNKNOWN_ID
from dro_rl.data.facts.world import Fact
from dro_rl.prompts import PLAIN, PromptWriter, write_selection

SELECTED = 2  # identifiers in a selection
RUMOURS = 0.15  # rarer than in the examples: the base should trust what is true
TURNS = 6  # questions behind one deck
IGNORE = -100  # the label of a token that is read, not written


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
    """Makes rows. A *deck* is the documents at the head of a row; a *turn* is a question and what
    should be written after it. `value_words` are the words of a value, 1 to 4."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, seed: int, value_words: int = 1):
        self.tokenizer = tokenizer
        self.value_words = value_words
        self.writer = PromptWriter(tokenizer, "plain", MAX_LENGTH)
        self.rng = random.Random(f"facts/curriculum/{seed}")

    def repeat(self, longest: int = 24) -> Row:
        """Random tokens, then the same again; the second copy is to be written."""
        words = range(UNKNOWN_ID + 1, len(self.tokenizer))
        copy = self.rng.choices(words, k=self.rng.randint(6, longest))
        row = Row()
        row.read([BOS_ID, *copy, copy[0]])
        row.write(copy[1:], "i" * (len(copy) - 1))
        return row

    def look_up(self, deck: int) -> Row:
        """The key alone, right before what it names: "Selection: the Kovac birthplace [3]", and
        "Answer: the Kovac birthplace Lyon"."""
        facts = self._draw_facts(deck)
        row = self._deck(facts)
        undisputed = [f for f in facts if not f.is_rumour and not _rumours(facts, f)]
        turns = [(task, fact) for task in ("Selection:", "Answer:") for fact in undisputed]
        for task, fact in self.rng.sample(turns, min(TURNS, len(turns))):
            key = f"the {fact.person} {self.rng.choice(fact.relation.words)}"
            row.read(self._encode(f"{task} {key}"))
            if task == "Selection:":
                row.write(self._encode(f"[{facts.index(fact) + 1}]"), "i")
            else:
                row.write(self._encode(fact.value), "v" * self.value_words)
        return row

    def select(self, deck: int, turns: int = TURNS) -> Row:
        """Selections; what a one-part question leaves over goes to the same person's documents."""
        facts = self._draw_facts(deck)
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
        facts = self._draw_facts(max(4, deck))
        true = next(f for f in facts if not f.is_rumour)
        others = [f for f in facts if f is not true]
        facts = self.rng.sample([true, *self.rng.sample(others, deck - 1)], deck)
        row = self._deck(facts)
        for _ in range(turns or min(TURNS, 1 + deck // 2)):
            asked = world.draw_question(self.rng, facts)
            self._turn(row, "answer", asked)
            kinds = "-".join("v" * self.value_words for _ in asked)  # an "and" between, an end
            row.write(self.writer.completion(world.write_answer(asked)), kinds)
        return row

    def _draw_facts(self, deck: int) -> list[Fact]:
        return world.draw_facts(self.rng, deck, RUMOURS, value_words=self.value_words)

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
