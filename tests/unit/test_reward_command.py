"""`dro-rl reward`: one reward in the foreground, and its bad input, in this process."""

import pdb
import sys
from functools import partial

import pytest

from tests.commands import run_here

pytestmark = pytest.mark.unit

SMALL = ("data.train_questions=8", "data.evaluation_questions=2", "--questions", "2")
HEADER = "from dro_rl.reward import Reward\n\nclass Mine(Reward):\n"


@pytest.fixture
def command(capsys, monkeypatch):
    """Runs `dro-rl WORDS` in this process: its exit code, output and errors."""
    monkeypatch.delenv("DRO_RL_OVERRIDES", raising=False)
    return partial(run_here, capsys)


@pytest.fixture
def run(command):
    def run(reward: str, *words: str):
        return command("reward", reward, "--recipe", "recipes/demo.yaml", *SMALL, *words)

    return run


@pytest.fixture
def write(tmp_path):
    def write(body: str) -> str:
        path = tmp_path / "mine.py"
        path.write_text(HEADER + body)
        return str(path)

    return write


def rows(out: str) -> list[list[str]]:
    return [line.split() for line in out.splitlines() if line.lstrip().startswith("[")]


def test_it_shows_selections_answers_and_scores(run):
    code, out, err = run("rewards/exact_match.py")
    assert code == 0, err
    assert "exact_match.py: scale linear, needs answer" in out
    assert out.count("(reference: ") == 2
    for part in out.split("(reference: ")[1:]:
        reference = part.split(")")[0]
        for row in rows(part):
            marks = next(i for i, word in enumerate(row) if set(word) <= {"*", "-"})
            said = " ".join(row[marks + 3 : -1])  # after how often it was drawn, and log p
            assert float(row[-1]) == float(said == reference), row
    assert {row[-1] for row in rows(out)} == {"0.0000", "1.0000"}


def test_selections_are_those_of_the_recipe_whatever_the_reward(run):
    _, likely, _ = run("rewards/answer_likelihood.py", "algorithm.samples=4")
    _, gold, _ = run("rewards/gold_recall.py", "algorithm.samples=4")
    names = [sorted(row[:4] for row in rows(out)) for out in (likely, gold)]
    assert names[0] == names[1] and len(names[0]) <= 8
    for row in rows(likely):
        assert float(row[-1]) == pytest.approx(float(row[-3]), abs=1e-3)  # log p(y) itself


def test_a_reward_may_be_written_as_in_a_recipe(run):
    sum_of_two = "[{use: rewards/f1.py, beta: 2, weight: 0.5}, {use: rewards/gold_recall.py}]"
    code, out, err = run(sum_of_two)
    assert code == 0, err
    assert "0.5 x" in out and "f1.py (beta: 2) + 1 x" in out


def test_a_breakpoint_in_a_reward_is_reached_with_its_outcomes(run, write, monkeypatch):
    stopped = []
    monkeypatch.setattr(pdb, "set_trace", lambda: stopped.append(sys._getframe(1).f_locals))
    monkeypatch.setattr(sys, "breakpointhook", lambda: pdb.set_trace())
    path = write(
        "    def score(self, outcomes):\n"
        "        breakpoint()\n"
        "        return [0.0 for _ in outcomes]\n"
    )
    assert run(path)[0] == 0
    assert len(stopped) == 2  # a question a call


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("    def score(self, outcomes) return 1\n", "mine.py, line 4: expected ':'"),
        ("    pass\n", "mine.py: Mine must define score"),
        (
            "    def score(self, outcomes): return 'high'\n",
            "train-0-4: score() must return",
        ),
        ("    def score(self, outcomes): return ['1' for _ in outcomes]\n", "returned '1', which"),
        ("    def score(self, outcomes): return [float('nan') for _ in outcomes]\n", "nan, which"),
        ("    def score(self, outcomes): return [1.0]\n", "and returned 1 values"),
    ],
)
def test_a_broken_reward_is_one_message(run, write, body, told):
    code, out, err = run(write(body))
    assert code == 2 and "Traceback" not in out + err
    assert err.splitlines()[-1].startswith("error: ") and told in err


def test_a_file_without_a_reward_is_one_message(run, tmp_path):
    (tmp_path / "mine.py").write_text("x = 1\n")
    code, _, err = run(str(tmp_path / "mine.py"))
    assert code == 2 and "must define exactly one Reward, and has none" in err


def test_a_reward_that_raises_keeps_its_traceback_and_names_the_example(run, write, capsys):
    with pytest.raises(LookupError, match="of the user"):
        run(write("    def score(self, outcomes): raise LookupError('of the user')\n"))
    assert "reward Mine raised on example train-0-4 (selection [" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("reward", "serve", "rewards/nothing.py"), "rewards/nothing.py: no such file"),
        (("reward", "serve", "{use: rewards/f1.py, bta: 2}"), "did you mean beta?"),
        (("reward", "serve", "{beta: 2}"), "reward '{beta: 2}': use: Field required"),
        (("reward", "serve", "[}"), "reward '[}': is not YAML"),
        (("reward", "serve", "rewards/f1.py", "--host", "999.1.1.1"), "cannot listen at 999.1.1.1"),
        (("check", "recipes/demo.yaml", "reward.beta=2"), "answer_likelihood.py"),
    ],
)
def test_what_cannot_be_served_or_used_is_one_message(command, words, told):
    code, _, err = command(*words)
    assert code == 2 and err.startswith("error: ") and told in err


def test_check_tells_scale_and_needs(command):
    _, out, _ = command("check", "recipes/demo.yaml", "reward={use: rewards/f1.py, beta: 2}")
    assert "reward:\n  use: " in out and "  beta: 2\n" in out
    assert "The reward's scale is linear; it needs answer." in out


def test_help_shows_both_ways(command):
    code, out, _ = command("reward", "--help")
    assert code == 0 and "serve" in out and "run" in out
