"""ColBERT through RAGatouille and PyLate in their own environments, with MiniLM's weights, on real
questions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import ray

from dro_rl.records import Document, Example
from dro_rl.retrieval import add_candidates
from dro_rl.sections.retrieval import ColbertRetrieval, FusionRetrieval, PylateRetrieval
from scripts.minilm_colbert import make_checkpoint
from tests.environments import needs_environment
from tests.real_data import REAL, needs_real_data

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


def gold_share(before: list[Example], after: list[Example]) -> float:
    """Mean share of a question's gold paragraphs among its candidates."""
    shares = [
        sum(d.is_gold for d in found.candidates) / sum(d.is_gold for d in given.candidates)
        for given, found in zip(before, after, strict=True)
    ]
    return sum(shares) / len(shares)


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=needs_environment(kind)) for kind in SECTIONS]
)
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
    assert gold_share(examples, ready) >= 0.75
    assert told == [f"{kind}: indexing 200 passages"]
    (alone,) = found(examples[3:4])  # one question, by the index that is there
    assert alone.candidates == ready[3].candidates
    assert alone.scores == pytest.approx(ready[3].scores, abs=1e-3)
    assert len(told) == 1


@needs_environment("colbert", "pylate")
def test_two_environments_are_fused(tmp_path: Path):
    make_checkpoint(tmp_path / "model")
    model = {"model": str(tmp_path / "model"), "max_length": 96}
    late = [{"kind": kind, **model} for kind in SECTIONS]
    settings = FusionRetrieval.model_validate(
        {"kind": "fusion", "of": [{"kind": "bm25"}, *late], "cache_dir": str(tmp_path / "cache")}
        | {"candidates": 10}
    )
    examples = questions("hotpotqa_validation.jsonl", 12)
    ready = add_candidates(examples, examples, settings, seed=0, required=5)
    assert not ray.is_initialized()  # what both used has ended
    assert gold_share(examples, ready) >= 0.75
    assert all(len(example.candidates) == 10 for example in ready)
