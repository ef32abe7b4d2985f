"""Teams of workers on Ray that outlive their workers.

A worker is lost when its process or node dies, and when it hangs: `Host.pulse` says so, or says
nothing. One that hangs has its stack dumped and is killed, so that the rest of this module knows
nothing but deaths. What follows depends on the role:

- Engines and the reward service hold nothing but weights. Their work goes to the rest of the team;
  the worker is made again, loads the weights that the team was given last, and is probed before it
  takes work.
- A learner's optimiser cannot be made again from outside: `WorkerLost` ends what the trainer does,
  and the run goes on from its last checkpoint.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from dro_rl.errors import UserError
from dro_rl.hardware import Device, Memory
from dro_rl.heartbeat import Heart, beat, keep_stack
from dro_rl.recipe import ClusterSection

Say = Callable[[str], object]
Check = Callable[[Any], object]
Done = Callable[[int], None]


class WorkerLost(UserError):
    """A process died or hung whose state is in the last checkpoint alone."""


class _Lost(Exception):
    """A worker that did not finish its call; the message says why."""


@dataclass(eq=False)
class Call:
    """What a worker is asked: its place among the results, and how it is sent to an actor."""

    number: int
    method: str
    send: Callable[[Any], Any]
    failures: int = 0


@dataclass(eq=False)
class Member:
    """A place in a team, whose actor changes when it is lost.

    `starting` are the calls that it has yet to go through before it takes work, with what looks at
    their results; empty: it serves. `failures` are losses since it last finished a call.
    """

    name: str
    number: int = 0
    actor: Any = None
    heart: Heart = field(init=False)
    starting: list[tuple[Any, Check | None]] = field(default_factory=list)
    began: float = 0.0
    failures: int = 0
    about: Any = None
    killed_for: str = ""


@dataclass
class Work:
    """Calls to be made, under way (by reference) and done.

    `spare`: a call whose worker was lost is not made again as long as others give a result.
    """

    todo: deque[Call] = field(default_factory=deque)
    running: dict[Any, tuple[Call, Member, Any]] = field(default_factory=dict)
    results: dict[int, Any] = field(default_factory=dict)
    spare: bool = False


class RayTeam:
    """n workers of one role, each in an actor of its own; see `dro_rl.cluster.Team`.

    Args:
        role: as messages name it.
        copies: n.
        new_actor: makes an actor of `Host`, for the worker of that number.
        worker: its class and arguments.
        section: the recipe's `cluster`.
        stateful: a worker that is lost is not made again, but raises `WorkerLost`; several of them
            work as one.
        say: shows a line.
        stacks: folder for the stacks of workers that hang; None keeps none.
    """

    def __init__(
        self,
        role: str,
        copies: int,
        new_actor: Callable[[int], Any],
        worker: Callable[[int], tuple[type, tuple]],
        section: ClusterSection,
        *,
        stateful: bool,
        say: Say,
        stacks: Path | None,
    ) -> None:
        self.role, self.section, self.stateful = role, section, stateful
        self._new_actor, self._worker, self._say, self._stacks = new_actor, worker, say, stacks
        self._look_at = 0.0
        self._on_return: dict[str, tuple[Any, Check | None]] = {}
        self._opening = True  # no work before all are there
        which = [f" {i + 1} of {copies}" if copies > 1 else "" for i in range(copies)]
        self.members = [Member(f"{role}{name}", i) for i, name in enumerate(which)]
        for member in self.members:
            self._start(member)

    # --- what is asked of a team ------------------------------------------------------------------

    def ready(self) -> list[Any]:
        while any(m.starting for m in self.members):
            self._next(Work())
        self._opening = False
        return [m.about for m in self.members]

    def submit(self, method: str, *args: Any) -> Callable[[], list[Any]]:
        import ray

        shared = ray.put(args)  # once for all workers
        return self._of_each(method, lambda actor: actor.call.remote(method, shared))

    def begin(self, method: str, calls: Sequence[tuple]) -> Callable[[], list[Any]]:
        work = self._work(method, calls)
        self._hand_out(work)
        return lambda: self._finish(work)

    def leave(self, method: str) -> Any:
        left: dict[int, Any] = {}

        def send(number: int, actor: Any) -> Any:
            done, left[number] = actor.leave.options(num_returns=2).remote(method)
            return done

        asked = range(len(self.members) if self.stateful else 1)
        self._finish(Work(deque(Call(i, method, partial(send, i)) for i in asked)))
        return left[0]

    def map(self, method: str, chunks: Sequence[tuple], done: Done) -> list[Any]:
        return self._finish(self._work(method, chunks), done)

    def devices(self) -> list[Device]:
        return self._of_each("device", lambda actor: actor.device.remote())()

    def memory(self) -> list[Memory]:
        return self._of_each("memory", lambda actor: actor.memory.remote())()

    def on_return(
        self, method: str, args: tuple, check: Check | None = None, *, anew: bool = False
    ) -> None:
        import ray

        self._on_return = {} if anew else self._on_return
        self._on_return[method] = (ray.put(args), check)
        for member in self.members:
            if member.starting:  # behind what it was told before
                member.starting += self._catch_up(member)

    def restart(self) -> None:
        self.stop()
        self._opening = True
        for member in self.members:
            self._start(member)

    def stop(self) -> None:
        import ray

        for member in self.members:
            ray.kill(member.actor)

    # --- work -------------------------------------------------------------------------------------

    def _work(self, method: str, chunks: Sequence[tuple]) -> Work:
        def call(number: int, chunk: tuple) -> Call:
            return Call(number, method, lambda actor: actor.call.remote(method, chunk))

        return Work(deque(call(i, chunk) for i, chunk in enumerate(chunks)))

    def _of_each(self, method: str, send: Callable[[Any], Any]) -> Callable[[], list[Any]]:
        """Of every worker that serves now; of the first that does, where none does."""
        work = Work(spare=True)
        for number, member in enumerate(self._serving()):
            call = Call(number, method, send)
            work.running[send(member.actor)] = (call, member, member.actor)
        if not work.running:
            work.todo.append(Call(0, method, send))
        return lambda: self._finish(work)

    def _finish(self, work: Work, done: Done = lambda number: None) -> list[Any]:
        while work.todo or work.running:
            self._hand_out(work)
            ended = self._next(work)
            if ended is None:
                continue
            call, member, actor = work.running.pop(ended)
            try:
                work.results[call.number] = self._take(ended, member, call.method)
            except _Lost as lost:
                self._lost(work, call, member, actor, lost)
                continue
            member.failures = 0
            done(call.number)
        return [value for _, value in sorted(work.results.items(), key=lambda item: item[0])]

    def _hand_out(self, work: Work) -> None:
        busy = {id(member) for _, member, _ in work.running.values()}
        for member in self._serving():
            if work.todo and id(member) not in busy:
                call = work.todo.popleft()
                work.running[call.send(member.actor)] = (call, member, member.actor)

    def _next(self, work: Work) -> Any:
        """The reference of a call that has ended; None where instead a worker may take one now."""
        import ray

        while True:
            if time.monotonic() >= self._look_at:
                self._look_after([member for _, member, _ in work.running.values()])
                self._look_at = time.monotonic() + beat(self.section)
            coming = {m.starting[-1][0]: m for m in self.members if m.starting}
            wait = max(0.0, self._look_at - time.monotonic())
            ended, _ = ray.wait([*work.running, *coming], num_returns=1, timeout=wait)
            if ended and ended[0] in coming:
                self._admit(coming[ended[0]])
                return None
            if ended:
                return ended[0]

    def _take(self, ref: Any, member: Member, method: str) -> Any:
        """A result that is there.

        Raises:
            UserError: the worker did.
            WorkerLost: what the call was given is lost.
            _Lost: the worker is.
        """
        import ray
        from ray import exceptions as ray_errors

        lost = (
            ray_errors.RayActorError,
            ray_errors.WorkerCrashedError,
            ray_errors.LocalRayletDiedError,
            ray_errors.NodeDiedError,
            ray_errors.ObjectLostError,
            ray_errors.GetTimeoutError,
        )
        try:
            return ray.get(ref, timeout=self.section.call_timeout)
        except ray_errors.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise UserError(str(error.cause)) from error
            if isinstance(error.cause, lost):
                why = in_short(str(error.cause))
                raise WorkerLost(f"{member.name}: {method} lacked an argument ({why})") from error
            raise
        except lost as error:
            raise _Lost(member.killed_for or in_short(str(error))) from error

    # --- losses -----------------------------------------------------------------------------------

    def _lost(self, work: Work, call: Call, member: Member, actor: Any, lost: _Lost) -> None:
        call.failures += 1
        if call.failures > self.section.max_failures and not self.stateful:
            raise self._gave_up(member, call.method, call.failures, lost) from lost
        if member.actor is actor:  # else it has been made again for another call's sake
            self._make_again(member, call.method, lost)
        if not (work.spare and (work.running or work.results)):
            work.todo.appendleft(call)

    def _make_again(self, member: Member, method: str, lost: _Lost) -> None:
        import ray

        if self.stateful:
            raise WorkerLost(f"{member.name}: lost in {method} ({lost})") from lost
        member.failures += 1
        if member.failures > self.section.max_failures:
            raise self._gave_up(member, method, member.failures, lost) from lost
        self._say(f"{member.name}: lost in {method} ({lost}); it is made again")
        ray.kill(member.actor)  # one that only could not be reached would keep its memory
        self._start(member)

    def _gave_up(self, member: Member, method: str, times: int, lost: _Lost) -> UserError:
        often = f"{times} times in a row" if times > 1 else "once"
        return UserError(
            f"{member.name}: lost in {method} {often}, more than cluster.max_failures "
            f"({self.section.max_failures}) allows; the last time: {lost}. Its log is in Ray's "
            "(`ray logs`); a run goes on from its last checkpoint with --resume"
        )

    # --- starting ---------------------------------------------------------------------------------

    def _start(self, member: Member) -> None:
        """Make its actor and queue what it has to go through; does not wait."""
        member.actor = self._new_actor(member.number)
        member.heart = Heart(member.actor, self.section)
        member.began, member.killed_for = time.monotonic(), ""

        def tell(about: Any) -> None:
            member.about = about

        made = member.actor.make.remote(*self._worker(member.number))
        member.starting = [(made, None), (member.actor.ready.remote(), tell)]
        member.starting += self._catch_up(member)

    def _catch_up(self, member: Member) -> list[tuple[Any, Check | None]]:
        return [
            (member.actor.call.remote(method, args), check)
            for method, (args, check) in self._on_return.items()
        ]

    def _admit(self, member: Member) -> None:
        """It has gone through its start: let it work, unless it failed."""
        try:
            for ref, check in member.starting:
                value = self._take(ref, member, "start")
                if check:
                    check(value)
        except _Lost as lost:
            self._make_again(member, "start", lost)
            return
        member.starting = []
        if not self._opening:
            self._say(f"{member.name}: back after {time.monotonic() - member.began:.1f} s")

    def _serving(self) -> list[Member]:
        return [m for m in self.members if not m.starting]

    def _look_after(self, busy: Sequence[Member]) -> None:
        """Kill those that hang, so that their calls end; starts have only to end in time."""
        import ray

        for member in dict.fromkeys(busy):
            if not member.killed_for and (why := member.heart.fails()):
                kept = keep_stack(self._stacks, member.name, member.heart.stack())
                member.killed_for = f"{why}; {kept}"
                ray.kill(member.actor)
        limit, now = self.section.start_timeout, time.monotonic()
        late = [m for m in self.members if m.starting and now - m.began > limit]
        if late and (self._opening or not self._serving()):
            raise UserError(
                f"{late[0].name}: start did not answer within {limit:.0f} s: see the workers' logs "
                "(`ray logs`) and that the cluster has room for it (`ray status`), or raise "
                "cluster.start_timeout"
            )


def in_short(message: str) -> str:
    """Of Ray's account of a death, why it died; without identifiers and addresses."""
    lines = [line for line in message.splitlines() if line and not line.startswith("\t")]
    return " ".join(lines[1:] or lines)
