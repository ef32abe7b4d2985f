"""ColBERT through RAGatouille and PyLate in their own environments, with MiniLM's weights, on real
questions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import ray

from dro_rl.errors import UserError
from dro_rl.records import Document, Example
from dro_rl.retrieval import add_candidates
from dro_rl.retrieval.environments import find_python
from dro_rl.retrieval_sections import ColbertRetrieval, PylateRetrieval
from scripts.minilm_colbert import make_checkpoint
from tests.real_data import REAL, needs_real_data


def has_environment(kind: str) -> bool:
    try:
        find_python(kind, f".venv-{kind}/bin/python")
    except UserError:
        return False
    return True


def installed(kind: str):
    reason = f"no .venv-{kind}: make {kind}-env"
    return pytest.param(kind, marks=pytest.mark.skipif(not has_environment(kind), reason=reason))


SECTIONS = {"colbert": ColbertRetrieval, "pylate": PylateRetrieval}
pytestmark = [pytest.mark.integration, pytest.mark.timeout(900), needs_real_data]


def questions(name: str, count: int) -> list[Example]:
    examples = []
    with (REAL / name).open() as file:
        for line, _ in zip(file, range(count), strict=False):
            row = json.loads(line)
            documents = tuple(Document(**document) for document in row["documents"])
            examples.append(Example(row["id"], row["question"], tuple(row["answers"]), documents))
    return examples


@pytest.mark.parametrize("kind", [installed("colbert"), installed("pylate")])
def test_gold_paragraphs_are_found_and_the_index_is_kept(tmp_path: Path, kind: str):
    make_checkpoint(tmp_path / "model")
    (tmp_path / "model").rename(tmp_path / "moved")
    settings = SECTIONS[kind](
        kind=kind,
        model=str(tmp_path / "moved"),
        max_length=96,
        candidates=10,
        cache_dir=str(tmp_path / "cache"),
    )
    examples = questions("hotpotqa_validation.jsonl", 12) + questions("musique.jsonl", 4)
    told: list[str] = []

    def found(asked: list[Example]) -> list[Example]:
        return add_candidates(asked, examples, settings, seed=0, required=5, say=told.append)

    ready = found(examples)
    assert not ray.is_initialized()  # what it started has ended
    shares = [
        sum(d.is_gold for d in after.candidates) / sum(d.is_gold for d in before.candidates)
        for before, after in zip(examples, ready, strict=True)
    ]
    assert sum(shares) / len(shares) >= 0.75
    assert told == [f"{kind}: indexing 200 passages"]
    (alone,) = found(examples[3:4])  # one question, by the index that is there
    assert alone.candidates == ready[3].candidates
    assert alone.scores == pytest.approx(ready[3].scores, abs=1e-3)
    assert len(told) == 1
