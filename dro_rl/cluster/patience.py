"""What a team waits for no longer: calls that hang or take too long, and starts that do."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from dro_rl.cluster.heartbeat import keep_stack
from dro_rl.cluster.team_work import Member
from dro_rl.errors import UserError
from dro_rl.sections.process import ClusterSection


def end_what_hangs(
    busy: Mapping[Member, str], section: ClusterSection, stacks: Path | None
) -> None:
    """Kill those that hang, so that their calls end.

    Args:
        busy: the workers that have a call, and its method.
        stacks: folder for their stacks; None keeps none.
    Raises:
        UserError: a call takes too long. One that works on would take as long again.
    """
    import ray

    for member, method in busy.items():
        if member.killed_for:
            continue
        if why := member.heart.fails():
            member.killed_for = f"{why}; {_stack_of(member, stacks)}"
            ray.kill(member.actor)
        elif member.heart.running > section.call_timeout:
            raise UserError(
                f"{member.name}: {method} has run for {member.heart.running:.0f} s, more than "
                f"cluster.call_timeout ({section.call_timeout:g}) allows: raise it, if "
                f"the call is to take so long; {_stack_of(member, stacks)}"
            )


def check_starts(members: Sequence[Member], section: ClusterSection) -> None:
    """Starts have only to end in time.

    Raises:
        UserError: one has not.
    """
    limit, now = section.start_timeout, time.monotonic()
    late = [m for m in members if m.starting and now - m.began > limit and not _made(m)]
    if late:
        raise UserError(
            f"{late[0].name}: start did not answer within {limit:.0f} s: see the workers' logs "
            "(`ray logs`) and that the cluster has room for it (`ray status`), or raise "
            "cluster.start_timeout"
        )


def _stack_of(member: Member, stacks: Path | None) -> str:
    """Where it is."""
    return keep_stack(stacks, member.name, member.heart.stack())


def _made(member: Member) -> bool:
    """Whether it has gone through its start, though nobody has waited for it yet."""
    import ray

    return bool(ray.wait([member.starting[-1][0]], timeout=0)[0])
