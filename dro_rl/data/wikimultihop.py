"""2WikiMultihopQA (Ho et al., COLING 2020, arXiv 2011.01060).

A record is HotpotQA's with "evidences" (triples, not used) and, in version 1.1, "answer_id". The
hub's copies have the columns of HotpotQA's, or JSON in strings. A paragraph is gold when one of
the supporting facts is in it.

id_aliases.json of version 1.1 has a line an entity, {"Q_id", "aliases", "demonyms"}; both lists are
further answers of the questions whose answer_id it is, as in 2wikimultihop_evaluate_v1.1.py. F1
follows HotpotQA's rule for yes and no.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict

from dro_rl.data.hotpotqa import HotpotQuestion
from dro_rl.data.load import Layout
from dro_rl.jsonlines import read_lines
from dro_rl.records import Example
from dro_rl.sections.data import WikimultihopData

Aliases = Mapping[str, tuple[str, ...]]  # of an entity, by its Wikidata id


class _Question(HotpotQuestion):
    answer_id: str | None = None


class _Entity(BaseModel):
    model_config = ConfigDict(extra="ignore")

    Q_id: str
    aliases: list[str]
    demonyms: list[str] = []


def _examples(aliases: Aliases, content: Any, name: str) -> Iterator[Example]:
    row = _Question.model_validate(content)
    answers = (row.answer, *aliases.get(row.answer_id or "", ()))
    yield Example(row.id, row.question, answers, row.documents(), metric="hotpotqa")


def _read_aliases(path: str) -> Aliases:
    schema = 'a line is {"Q_id": "...", "aliases": ["..."], "demonyms": ["..."]}'
    rows = read_lines(path, _Entity, schema, "data.aliases_path")
    return {row.Q_id: (*row.aliases, *row.demonyms) for _, row in rows}


def layout(data: WikimultihopData) -> Layout:
    aliases = _read_aliases(data.aliases_path) if data.aliases_path else {}
    return Layout(
        partial(_examples, aliases),
        "this is not 2WikiMultihopQA's format with answers and supporting facts (its hidden test "
        "set has neither)",
    )
