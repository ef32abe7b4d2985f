"""The built-in world: short documents about people, and questions that one or two of them answer.

A *fact* is a person, a relation and a value. The title of its document is the key ("Kovac
birthplace"), its text a sentence ("Born in Lyon, according to town records."). A *rumour*
contradicts one fact ("Kovac birthplace rumour": "Born in Oslo, people say of Kovac."): it has
every look-up word of the truth and names the person twice, so a lexical retriever likes it better,
and a generator that reads it alone answers wrongly. The other candidates are near misses: the same
person with another relation, another person with the same relation. An *echo* states a fact that
another candidate states already, under the relation's other name: useful alone, useless beside the
other, so the worth of a document depends on what else is selected. Both are gold, so with echoes
gold recall stays below 1 for the best K documents too: read the recall of the answer.

Facts are drawn anew for every question, so a policy can memorise none: it has to read.

What was given up for a 0.4M-parameter model to learn this in minutes on one core (without it,
pointing at an identifier stayed at chance): names are single words, and so are values unless
`value_words` asks for more; the person stands right before the relation in title and question
alike; a paraphrase is one other word for the relation, no more. The tokenizer drops separating
punctuation.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from dro_rl.records import Document, Example

PEOPLE = tuple(
    "Adler Bianchi Castro Dubois Eriksen Farkas Greco Hansen Ivanov Jansen Kovac Lindgren Moreau "
    "Novak Okafor Petrov Quinn Rossi Silva Tanaka Ueda Varga Weber Xu Yilmaz Zhang Abara Berg "
    "Conti Diaz Endo Fischer Gallo Horvat Ito Jung Keller Lopez Mori Nagy Olsen Pereira Ramos "
    "Sato Torres Ulrich Vidal Wolf".split()
)


@dataclass(frozen=True, slots=True)
class Relation:
    """`words` are interchangeable names; `phrase` is how a document begins; `values` are the single
    words that a fact's value is made of, and no two relations share one."""

    words: tuple[str, str]
    phrase: str
    values: tuple[str, ...]


RELATIONS = (
    Relation(
        ("birthplace", "hometown"),
        "Born in",
        tuple(
            "Lyon Oslo Porto Turin Ghent Krakow Seville Bergen Leeds Dresden Bilbao Odessa Lima "
            "Kyoto Cairo Quito".split()
        ),
    ),
    Relation(
        ("trade", "profession"),
        "Works as a",
        tuple(
            "pilot baker tailor nurse lawyer farmer potter miner sailor painter plumber teacher "
            "cook printer weaver surgeon".split()
        ),
    ),
    Relation(
        ("pastime", "hobby"),
        "Enjoys",
        tuple(
            "chess fishing archery sailing knitting cycling juggling boxing rowing skiing origami "
            "fencing surfing climbing poetry golf".split()
        ),
    ),
    Relation(
        ("pet", "animal"),
        "Keeps a",
        tuple(
            "cat parrot rabbit turtle pony ferret hamster canary lizard goat goose donkey spider "
            "crow snake duck".split()
        ),
    ),
    Relation(
        ("language", "tongue"),
        "Speaks",
        tuple(
            "Basque Welsh Catalan Polish Finnish Turkish Arabic Hindi Korean Greek Czech Swahili "
            "Danish Tamil Irish Maltese".split()
        ),
    ),
    Relation(
        ("drink", "beverage"),
        "Likes",
        tuple(
            "tea coffee cocoa cider milk lemonade wine beer water juice brandy sherry kefir sake "
            "mead rum".split()
        ),
    ),
)
SOURCES = ("according to town records", "as parish books state", "by all accounts")
RUMOUR = "rumour"
HEARSAY = "people say of"
TWO_PARTS = 0.6  # share of questions that need two documents


@dataclass(frozen=True, slots=True)
class Fact:
    """What a document states: `value` is one word, or several ("Lyon Oslo Porto"); a rumour's
    differs from the true one in every place."""

    person: str
    relation: Relation
    value: str
    is_rumour: bool = False

    def document(
        self, rng: random.Random, is_gold: bool = False, word: str | None = None
    ) -> Document:
        """The fact written down, with `word` or else either name of its relation."""
        key = f"{self.person} {word or rng.choice(self.relation.words)}"
        claim = f"{self.relation.phrase} {self.value}"
        if self.is_rumour:
            return Document(f"{key} {RUMOUR}", f"{claim}, {HEARSAY} {self.person}.")
        return Document(key, f"{claim}, {rng.choice(SOURCES)}.", is_gold)


def make_examples(
    count: int,
    seed: int,
    documents: int = 8,
    rumours: float = 0.3,
    echoes: float = 0.0,
    value_words: int = 1,
    split: str = "train",
) -> list[Example]:
    """Questions about worlds of their own.

    Args:
        count: number of examples.
        seed: with `split`, decides everything; streams of different splits are independent.
        documents: candidates a question, 4 to 20.
        rumours: probability that the next document contradicts one that is already there.
        echoes: probability that the next document, if no rumour, states a fact again.
        value_words: different words in a value, 1 to 4.
    """
    settings = (documents, rumours, echoes) if echoes else (documents, rumours)
    if value_words > 1:
        settings += (f"{value_words} words",)
    rng = random.Random("/".join(map(str, ("facts", split, seed, *settings))))
    return [
        _make_example(
            rng, f"{split}-{seed}-{i}", draw_facts(rng, documents, rumours, echoes, value_words)
        )
        for i in range(count)
    ]


def _make_example(rng: random.Random, name: str, facts: Sequence[Fact]) -> Example:
    asked = draw_question(rng, facts)
    parts = tuple(fact.value for fact in asked)
    return Example(
        id=name,
        question=write_question(rng, asked),
        answers=(write_answer(asked),),
        candidates=write_documents(rng, facts, asked),
        parts=parts,
    )


def write_documents(
    rng: random.Random, facts: Sequence[Fact], asked: Sequence[Fact]
) -> tuple[Document, ...]:
    """A document a fact; of two that state the same, each has its own name for the relation."""
    stated: dict[Fact, Document] = {}
    documents = []
    for fact in facts:
        word = None
        if fact in stated:
            first, second = fact.relation.words
            word = second if stated[fact].title.endswith(first) else first
        documents.append(fact.document(rng, fact in asked, word))
        stated[fact] = documents[-1]
    return tuple(documents)


def draw_facts(
    rng: random.Random, count: int, rumours: float, echoes: float = 0.0, value_words: int = 1
) -> list[Fact]:
    """A shuffled closed world of `count` facts, few people and few relations, so that near misses
    abound; at most one rumour and one echo a fact."""
    if not 4 <= count <= 20:
        raise ValueError(f"documents must be 4 to 20, not {count}")
    people = rng.sample(PEOPLE, max(3, count // 2))
    relations = rng.sample(RELATIONS, min(len(RELATIONS), max(2, count // 2)))
    keys = [(person, relation) for person in people for relation in relations]
    rng.shuffle(keys)
    facts: list[Fact] = []
    trusted: list[Fact] = []  # facts that no rumour contradicts yet
    single: list[Fact] = []  # facts that are stated once
    while len(facts) < count:
        if trusted and rng.random() < rumours:
            truth = trusted.pop(rng.randrange(len(trusted)))
            value = _draw_value(rng, truth.relation, value_words, unlike=truth.value.split())
            facts.append(Fact(truth.person, truth.relation, value, is_rumour=True))
        elif echoes and single and rng.random() < echoes:
            facts.append(single.pop(rng.randrange(len(single))))
        else:
            person, relation = keys.pop()
            trusted.append(Fact(person, relation, _draw_value(rng, relation, value_words)))
            facts.append(trusted[-1])
            single.append(trusted[-1])
    rng.shuffle(facts)
    return facts


def _draw_value(
    rng: random.Random, relation: Relation, value_words: int, unlike: Sequence[str] = ()
) -> str:
    """So many different words of the relation, none in the place where `unlike` has it."""
    words: list[str] = []
    for place in range(value_words):
        taken = {*words, *unlike[place : place + 1]}
        words.append(rng.choice([value for value in relation.values if value not in taken]))
    return " ".join(words)


def draw_question(rng: random.Random, facts: Sequence[Fact]) -> list[Fact]:
    """One or two true facts to ask for, in the order of the question."""
    true = list(dict.fromkeys(fact for fact in facts if not fact.is_rumour))
    return rng.sample(true, 2 if len(true) > 1 and rng.random() < TWO_PARTS else 1)


def write_question(rng: random.Random, asked: Sequence[Fact]) -> str:
    """A question for one or two facts: `Name the Kovac hometown and the Silva trade.`"""
    keys = (f"the {fact.person} {rng.choice(fact.relation.words)}" for fact in asked)
    return f"Name {' and '.join(keys)}."


def write_answer(asked: Sequence[Fact]) -> str:
    """The values in the order of the question: `Lyon and pilot`."""
    return " and ".join(fact.value for fact in asked)
