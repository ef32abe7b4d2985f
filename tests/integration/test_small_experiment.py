"""The command line in this process: a tiny experiment as it is, begun again, and with rewards that
are broken."""

from functools import partial

import pytest

from tests.commands import refused, run_here
from tests.small_experiment import Place, make_place

pytestmark = pytest.mark.integration


@pytest.fixture
def place(tmp_path, monkeypatch) -> Place:
    return make_place(tmp_path / "work", monkeypatch)


@pytest.fixture
def command(capsys):
    return partial(run_here, capsys)


def test_the_tiny_experiment_trains_when_nothing_is_broken(place, command):
    code, out, err = command("train", place.recipe)
    assert code == 0, err
    assert "warm start" in out and f"run directory: {place.run}" in out
    assert (place.run / "checkpoints" / "iteration-0001" / "selector" / "config.json").is_file()


def test_a_first_run_is_resumed_only_when_asked(place, command):
    assert command("train", place.recipe)[0] == 0
    before = place.files()
    refused(command("train", place.recipe), "holds a run already", f"--resume {place.run}")
    assert place.files() == before
    code, out, err = command("train", place.recipe, "tracking.resume=auto")
    assert code == 0 and f"{place.run}: has done its iterations" in out, err
    again = ("tracking.resume=auto", "training.iterations=2")
    refused(
        command("train", place.recipe, *again, "selector.learning_rate=0.5"),
        f"{place.run}: going on with other settings",
        "selector.learning_rate: 0.001 -> 0.5",
    )
    code, out, err = command("train", place.recipe, *again)
    assert code == 0 and f"resumed {place.run} after iteration 1" in out, err
    assert (place.run / "checkpoints" / "iteration-0002").is_dir()
    last = place.run / "checkpoints" / "iteration-0002" / "selector" / "model.safetensors"
    last.write_bytes(last.read_bytes()[:-1])
    code, out, err = command("train", place.recipe, *again)
    assert code == 0 and "going back to iteration 1" in out, err  # a damaged end is none


def test_a_reward_that_returns_nonsense_names_the_example(place, command):
    path = place.folder / "mine.py"
    path.write_text(
        "from dro_rl.reward import Reward\nclass Mine(Reward):\n"
        "    def score(self, outcomes): return [float('nan')] * len(outcomes)\n"
    )
    refused(command("train", place.recipe, f"reward={path}"), "reward Mine, example q")


def test_a_reward_that_raises_keeps_its_traceback(place, command):
    path = place.folder / "mine.py"
    path.write_text(
        "from dro_rl.reward import Reward\nclass Mine(Reward):\n"
        "    def score(self, outcomes): raise LookupError('of the user')\n"
    )
    with pytest.raises(LookupError, match="of the user"):
        command("train", place.recipe, f"reward={path}")
