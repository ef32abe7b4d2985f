"""A run that loses learners."""

import io
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console as RichConsole

from dro_rl.errors import UserError
from dro_rl.recovery import keep_going
from dro_rl.supervision import WorkerLost, in_short
from dro_rl.tracking.console import Console
from dro_rl.tracking.run_directory import RunDirectory

pytestmark = pytest.mark.unit


def attempts(losses: int, most: int) -> tuple[list[str], str]:
    """What happens in a run whose first attempts lose a learner, and what is said."""
    happened, said = list[str](), io.StringIO()

    def attempt(done: int) -> None:
        happened.append("attempt")
        if happened.count("attempt") <= losses:
            raise WorkerLost("selector learner: lost in step (it died)")

    teams = SimpleNamespace(
        recipe=SimpleNamespace(cluster=SimpleNamespace(max_failures=most)),
        restart_learners=lambda: happened.append("restart"),
    )
    console = Console(RichConsole(file=said, soft_wrap=True))
    keep_going(attempt, 0, teams, RunDirectory(Path("runs/x")), console)
    return happened, said.getvalue()


def test_learners_start_afresh_before_every_other_attempt():
    happened, said = attempts(losses=2, most=2)
    assert happened == ["attempt", "restart", "attempt", "restart", "attempt"]
    assert said.splitlines() == [
        f"selector learner: lost in step (it died): learners start again from the last checkpoint, "
        f"{n}/2"
        for n in (1, 2)
    ]


def test_an_undisturbed_run_restarts_nothing():
    assert attempts(losses=0, most=0) == (["attempt"], "")


def test_one_loss_too_many_ends_the_run_and_says_how_to_go_on():
    with pytest.raises(UserError, match=r"lost in step.*max_failures is 1.*--resume runs/x"):
        attempts(losses=2, most=1)


def test_of_a_death_the_reason_is_told():
    message = (
        "The actor died unexpectedly before finishing this task.\n\tclass_name: Host\n"
        "\tactor_id: 3b2a\n\tpid: 17\nThe actor is dead because its worker process has died. "
        "Worker exit type: NODE_OUT_OF_MEMORY"
    )
    assert in_short(message) == (
        "The actor is dead because its worker process has died. "
        "Worker exit type: NODE_OUT_OF_MEMORY"
    )
    assert in_short("Owner died") == "Owner died"
