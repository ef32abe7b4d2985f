"""`dro-rl compare` with real runs in one process each: two tiny arms, two seeds."""

import csv
import re
import shlex
import shutil
import signal
import time
from pathlib import Path

import pytest
import yaml

from tests.commands import Result, checkpoint, dro_rl, files, start

pytestmark = pytest.mark.e2e

TINY = (
    "data.train_questions=32",
    "data.evaluation_questions=8",
    "training.questions_per_iteration=8",
    "training.batch_size=8",
    "training.tokens_per_microbatch=1200",
    "training.iterations=2",
    "algorithm.samples=4",
    "evaluation.samples=4",
)
LOCAL = {"cluster": {"mode": "local"}, "rollout": {"engine": "transformers"}}
ARMS = {"dro": {}, "selector_only": {"algorithm": {"train": ["selector"]}}}
# In the environment, as `ray job submit` gives them: the runs must not read them once more.
GIVEN = {"DRO_RL_OVERRIDES": shlex.join(TINY)}


def write(path: Path, arms: dict) -> Path:
    settings = {"base": "demo.yaml", "settings": LOCAL, "seeds": [0, 1], "output": "unused"}
    path.write_text(yaml.safe_dump({**settings, "arms": arms}, sort_keys=False))
    return path


def compare(file: Path, output: Path, *words: str) -> Result:
    return dro_rl("compare", file, f"output={output}", *words, **GIVEN)


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[Path, Path, Result]:
    """A comparison run to its end: its file, its output and what it said."""
    folder = tmp_path_factory.mktemp("done")
    file = write(folder / "mine.yaml", ARMS)
    return file, folder / "out", compare(file, folder / "out", "--jobs", "2").succeeded()


def copied(done: tuple[Path, Path, Result], place: Path) -> tuple[Path, Path]:
    """The file and a copy of the output, to go on with."""
    return done[0], Path(shutil.copytree(done[1], place))


def results(output: Path) -> list[dict[str, str]]:
    """The rows of results.csv without times."""
    with (output / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in rows]


def test_every_arm_and_seed_is_in_the_table_the_csv_and_the_figures(done):
    _, output, said = done
    rows = results(output)
    assert [(r["arm"], r["seed"], r["iteration"]) for r in rows] == [
        (arm, seed, i) for arm in ARMS for seed in "01" for i in "012"
    ]
    assert {r["selections_drawn"] for r in rows if r["iteration"] == "2"} == {"64"}
    report = (output / "report.md").read_text()
    assert re.search(r"^\| selector_only \| 2 \| .* ± ", report, re.M)
    assert re.search(r"^\| selector_only - dro \| 2 \| .*\[.*\]", report, re.M)
    assert (output / "figures" / "bound.svg").read_text().startswith("<?xml")
    assert str(output / "report.md") in said.out


def test_arms_start_alike_and_end_apart(done):
    by_arm = {arm: [r for r in results(done[1]) if r["arm"] == arm] for arm in ARMS}
    pairs = list(zip(*by_arm.values(), strict=True))
    for one, other in pairs:
        assert (one["bound"] == other["bound"]) == (one["iteration"] == "0")


def test_there_is_a_line_a_run_and_its_log(done):
    _, output, said = done
    number = r"-?\d+\.\d+"
    for arm in ARMS:
        for seed in (0, 1):
            line = rf"{arm} seed {seed}: EM {number} -> {number}, bound {number} -> {number}, \d+ s"
            assert re.search(rf"^{line} \([1-4]/4 runs", said.out, re.M)
            assert "iteration 2/2" in (output / arm / f"seed-{seed}.log").read_text()
    assert "about" in said.out and "(4/4 runs)" in said.out


def test_run_again_it_does_nothing_again(done, tmp_path):
    file, output = copied(done, tmp_path / "out")
    before = files(output)
    again = compare(file, output).succeeded()
    assert "4 of 4 runs had finished before" in again.out
    assert "selector_only - dro" in again.out
    after = files(output)
    for report in ("report.md", "report.html"):
        assert after.pop(report) != before.pop(report)  # the command is another
    assert after == before


def test_ended_half_way_it_goes_on_to_the_same_results(done, tmp_path):
    file, output = copied(done, tmp_path / "out")
    run = output / "selector_only" / "seed-1"
    shutil.rmtree(run)
    process = start("compare", file, f"output={output}", **GIVEN)
    try:
        while not checkpoint(run, 1).is_dir():
            assert process.poll() is None, process.communicate()
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM
    assert not checkpoint(run, 2).is_dir()
    assert len(results(output)) == 3 * 3  # what has not finished is not reported
    again = compare(file, output).succeeded()  # nothing that was begun holds the place
    assert "3 of 4 runs had finished before" in again.out
    assert "after iteration 1" in (output / "selector_only" / "seed-1.log").read_text()
    assert results(output) == results(done[1])


PICKY = """
from dro_rl.reward import Reward


class Picky(Reward):
    needs = ("likelihood",)

    def score(self, outcomes):
        raise ArithmeticError("too picky")
"""


def test_an_arm_that_fails_leaves_the_others_and_is_tried_again(done, tmp_path):
    _, output = copied(done, tmp_path / "out")
    reward = tmp_path / "picky.py"
    reward.write_text(PICKY)
    file = write(tmp_path / "mine.yaml", {"picky": {"reward": str(reward)}, "dro": {}})
    failed = compare(file, output, "seeds=[0]")
    assert failed.code == 1 and "Traceback" not in failed.out + failed.err
    assert re.search(
        r"^picky seed 0: failed after \d+ s: ArithmeticError: too picky", failed.out, re.M
    )
    assert {row["arm"] for row in results(output)} == {"dro"}
    assert "picky seed 0: `ArithmeticError: too picky`" in (output / "report.md").read_text()
    reward.write_text(
        PICKY.replace('raise ArithmeticError("too picky")', "return [2.0] * len(outcomes)")
    )
    mended = compare(file, output, "seeds=[0]").succeeded()
    assert "failed" not in mended.out + (output / "report.md").read_text()
    assert {row["arm"] for row in results(output)} == {"picky", "dro"}


def test_unfair_arms_are_refused_before_anything_runs(tmp_path):
    file = write(tmp_path / "mine.yaml", ARMS | {"sly": {"data": {"rumours": 0.9}}})
    compare(file, tmp_path / "out").refused("arm sly", "data.rumours")
    assert not (tmp_path / "out").exists()


def test_a_changed_arm_does_not_mix_with_runs_that_are_there(done, tmp_path):
    file, output = copied(done, tmp_path / "out")
    before = files(output)
    place = str(output / "dro" / "seed-0")
    compare(file, output, "training.weight_decay=0.5").refused(place, "training.weight_decay")
    assert files(output) == before


def test_two_comparisons_do_not_share_a_folder(done, tmp_path):
    import fcntl

    file, output = copied(done, tmp_path / "out")
    with (output / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        compare(file, output).refused("another comparison", "output=")
