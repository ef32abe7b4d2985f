"""A run that loses learners."""

import io
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console as RichConsole

from dro_rl.cluster.ray_results import WorkerLost, in_short
from dro_rl.errors import UserError
from dro_rl.passes import PassTooLarge
from dro_rl.recovery import keep_going
from dro_rl.tracking.console import Console
from dro_rl.tracking.run_directory import RunDirectory

pytestmark = pytest.mark.unit


def attempts(most: int, *errors: Exception) -> tuple[list[str], str]:
    """What happens in a run whose first attempts end with these errors, and what is said."""
    happened, said = list[str](), io.StringIO()

    def attempt(done: int) -> None:
        happened.append("attempt")
        if happened.count("attempt") <= len(errors):
            raise errors[happened.count("attempt") - 1]

    teams = SimpleNamespace(
        recipe=SimpleNamespace(cluster=SimpleNamespace(max_failures=most)),
        restart_learners=lambda tokens: happened.append(f"restart with {tokens}"),
    )
    console = Console(RichConsole(file=said, soft_wrap=True))
    keep_going(attempt, 0, teams, RunDirectory(Path("runs/x")), console)
    return happened, said.getvalue()


LOST = WorkerLost("selector learner: lost in step (it died)")


def test_learners_start_afresh_before_every_other_attempt():
    happened, said = attempts(2, LOST, LOST)
    again = ["restart with None", "attempt"]
    assert happened == ["attempt", *again, *again]
    assert said.splitlines() == [
        f"selector learner: lost in step (it died): learners start again from the last checkpoint, "
        f"{n}/2"
        for n in (1, 2)
    ]


def test_an_undisturbed_run_restarts_nothing():
    assert attempts(0) == (["attempt"], "")


def test_one_loss_too_many_ends_the_run_and_says_how_to_go_on():
    with pytest.raises(UserError, match=r"lost in step.*max_failures is 1.*--resume runs/x"):
        attempts(1, LOST, LOST)


def test_ranks_without_memory_take_less_from_then_on_and_are_no_losses():
    happened, said = attempts(1, PassTooLarge(1, 900), PassTooLarge(0, 400), LOST)
    restarts = [line for line in happened if line != "attempt"]
    assert restarts == ["restart with 450", "restart with 200", "restart with 200"]
    first, *_ = said.splitlines()
    assert "out of memory in a forward pass of 900 tokens on rank 1" in first
    assert "at most 450; set training.tokens_per_microbatch to that" in first


def test_of_a_death_the_reason_is_told():
    message = (
        "The actor died unexpectedly before finishing this task.\n\tclass_name: Host\n"
        "\tactor_id: 3b2a\n\tpid: 17\nThe actor is dead because its worker process has died. "
        "Worker exit type: NODE_OUT_OF_MEMORY Some common causes include: (1) the weather"
    )
    assert in_short(message) == (
        "The actor is dead because its worker process has died. "
        "Worker exit type: NODE_OUT_OF_MEMORY"
    )
    assert in_short("Owner died") == "Owner died"
