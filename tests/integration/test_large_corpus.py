"""How much memory a corpus takes that is larger than what may be held of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import ROOT, environment

pytestmark = pytest.mark.integration

# VmHWM is the most that this process ever had resident; ru_maxrss would begin with its parent's.
MEASURE = """
import json, sys
from pathlib import Path
from dro_rl.retrieval.corpus import open_corpus
from dro_rl.sections.retrieval import Bm25Retrieval

folder = Path(sys.argv[1])

def opened(count):
    path = folder / f"{count}.jsonl"
    with path.open("w") as file:
        for i in range(count):
            file.write(json.dumps({"title": str(i), "text": f"{i:06d} " * 200}) + "\\n")
    section = Bm25Retrieval(kind="bm25", corpus_path=str(path), cache_dir=str(folder / "cache"))
    corpus = open_corpus(section, [])
    assert all(corpus[i].text.startswith(f"{i:06d} ") for i in range(0, count, count // 10))
    (peak,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM:")]
    return corpus.passages.stat().st_size / 1e6, int(peak.split()[1]) * 1024 / 1e6

print(json.dumps([opened(10_000), opened(90_000)]))
"""


def test_a_large_corpus_stays_out_of_memory(tmp_path: Path):
    """One that is 110 MB larger takes less than 40 MB more to write, open and read from."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (small, before), (large, after) = json.loads(done.stdout)
    assert large - small > 110
    assert after - before < 40, f"{after - before:.0f} MB more for {large - small:.0f} MB"
