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
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dro_rl.cluster.heartbeat import Heart, beat
from dro_rl.cluster.patience import check_starts, end_what_hangs
from dro_rl.cluster.ray_results import Lost, WorkerLost, result_of
from dro_rl.cluster.team_work import Call, Check, Done, Member, Say, Work
from dro_rl.errors import UserError
from dro_rl.hardware import Device, Memory
from dro_rl.sections.process import ClusterSection

_MAKING = 2
"""Calls that make a worker, `make` and `ready`; those after them bring it up to date."""


class RayTeam:
    """n workers of one role, each in an actor of its own; see `dro_rl.cluster.team.Team`.

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

        if anew:
            known, part = self._on_return, _part(method)
            self._on_return = {m: said for m, said in known.items() if _part(m) != part}
        self._on_return[method] = (ray.put(args), check)
        for member in self.members:
            self._tell_again(member)

    def forget(self) -> None:
        self._on_return = {}
        for member in self.members:
            self._tell_again(member)

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
            except Lost as lost:
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
                self._look_after({m: call.method for call, m, _ in work.running.values()})
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
        """See `result_of`; names the worker."""
        try:
            return result_of(ref, self.section.call_timeout)
        except WorkerLost as lost:
            raise WorkerLost(f"{member.name}: {method}: {lost}") from lost
        except Lost as lost:
            raise Lost(member.killed_for or str(lost)) from lost

    # --- losses -----------------------------------------------------------------------------------

    def _lost(self, work: Work, call: Call, member: Member, actor: Any, lost: Lost) -> None:
        call.failures += 1
        if call.failures > self.section.max_failures and not self.stateful:
            raise self._gave_up(member, call.method, call.failures, lost) from lost
        if member.actor is actor:  # else it has been made again for another call's sake
            self._make_again(member, call.method, lost)
        if not (work.spare and (work.running or work.results)):
            work.todo.appendleft(call)

    def _make_again(self, member: Member, method: str, lost: Lost) -> None:
        import ray

        if self.stateful:
            raise WorkerLost(f"{member.name}: lost in {method} ({lost})") from lost
        member.failures += 1
        if member.failures > self.section.max_failures:
            raise self._gave_up(member, method, member.failures, lost) from lost
        self._say(f"{member.name}: lost in {method} ({lost}); it is made again")
        ray.kill(member.actor)  # one that only could not be reached would keep its memory
        self._start(member)

    def _gave_up(self, member: Member, method: str, times: int, lost: Lost) -> UserError:
        often = f"{times} times in a row" if times > 1 else "once"
        why = str(lost).rstrip(".")
        return UserError(
            f"{member.name}: lost in {method} {often}, more than cluster.max_failures "
            f"({self.section.max_failures}) allows; the last time: {why}. Its log is in Ray's "
            "(`ray logs`), unless the system killed it because memory was short (`dmesg`); a run "
            "goes on from its last checkpoint with --resume"
        )

    # --- starting ---------------------------------------------------------------------------------

    def _start(self, member: Member) -> None:
        """Make its actor and queue what it has to go through; does not wait."""
        member.actor = self._new_actor(member.number)
        member.heart = Heart(member.actor, self.section)
        worker = self._worker(member.number)  # waits until there is room, for a rank
        member.began, member.killed_for = time.monotonic(), ""

        def tell(about: Any) -> None:
            member.about = about

        made = member.actor.make.remote(*worker)
        member.starting = [(made, None), (member.actor.ready.remote(), tell)]
        member.starting += self._catch_up(member)

    def _tell_again(self, member: Member) -> None:
        """What it was told before no longer counts: it may fail for weights that are gone."""
        if member.starting:
            member.starting = member.starting[:_MAKING] + self._catch_up(member)

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
        except Lost as lost:
            self._make_again(member, "start", lost)
            return
        member.starting = []
        if not self._opening:
            self._say(f"{member.name}: back after {time.monotonic() - member.began:.1f} s")

    def _serving(self) -> list[Member]:
        return [m for m in self.members if not m.starting]

    def _look_after(self, busy: Mapping[Member, str]) -> None:
        end_what_hangs(busy, self.section, self._stacks)
        if self._opening or not self._serving():
            check_starts(self.members, self.section)


def _part(method: str) -> str:
    """Whose method it is, of a worker that holds several parts; see `dro_rl.shared_base`."""
    return method.rpartition(".")[0]
