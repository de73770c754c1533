"""A rolling restart: a new process for every worker, one at a time, at full capacity. Pure.

It is a wanted epoch for every worker, and this file holds back all but one of them. A spare
worker comes first; it stands in on the core of whichever worker is being restarted, and goes in
the end. GPU workers cannot be moved, and a GPU seldom holds a model twice: there a spare is
made only where there is one worker. Which step is next follows from what is wanted and what is;
nothing else is remembered, so that a crash in the middle changes no rule.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from lbhost.board import WorkerState
from lbhost.placement.placement import Placement
from lbhost.supervisor import lifecycle
from lbhost.supervisor.desired import ModelWanted, Rolling, WorkerWanted

_S = WorkerState

States = Mapping[int, tuple[WorkerState, int]]
"""State and epoch by worker id."""


class Over(msgspec.Struct, frozen=True):
    """How it ended."""

    done: int
    failure: str | None = None
    """Why it stopped, naming the worker; None if all is done."""
    worker: int | None = None
    """Who did not start, if that was why."""


class Step(msgspec.Struct, frozen=True):
    """What a rolling restart allows now. The default allows everything: none is wanted."""

    rolling: Rolling | None = None
    spare_place: Placement | None = None
    """Where the spare has to be; None: where it is."""
    begun: bool = True
    """Whether the spare is there, so that workers may be restarted."""
    turn: int | None = None
    """Whose turn it is."""
    done: int = 0
    finished: bool = False
    """All are done; the spare is going."""
    over: Over | None = None

    def wanted(self, worker: int, want: WorkerWanted, epoch: int) -> WorkerWanted:
        """What is wanted of a worker in this step."""
        if self.rolling is None:
            return want
        if worker == self.rolling.spare:
            home = self.spare_place or want.home
            return msgspec.structs.replace(want, home=home, leaving=want.leaving or self.finished)
        if worker in self.rolling.targets and worker != self.turn and epoch < want.epoch:
            return msgspec.structs.replace(want, epoch=epoch)
        return want

    @property
    def text(self) -> str:
        """For a person."""
        total = 0 if self.rolling is None else len(self.rolling.targets)
        count = f"{self.done} of {total} done"
        if self.finished:
            return f"retiring the spare worker, {count}"
        if not self.begun or self.turn is None:
            return f"starting a spare worker, {count}" if not self.begun else count
        return f"worker {self.turn}, {count}"


def step(desired: ModelWanted, states: States) -> Step:
    """Which step comes now."""
    plan = desired.rolling
    if plan is None:
        return Step()
    wanted = {i: w for i, w in desired.members().items() if w.runs and i in states}
    targets = {i: epoch for i, epoch in plan.targets.items() if i in wanted}
    done = sum(1 for i, epoch in targets.items() if _done(states[i], epoch))
    over = _failure(desired, plan, wanted, states, done)
    if over is not None:
        return Step(plan, done=done, over=over)
    waiting = [i for i, epoch in targets.items() if not _done(states[i], epoch)]
    if not waiting:
        return _end(plan, states, done)
    spare = None if plan.spare is None else states.get(plan.spare)
    spare_up = spare is None or spare[0] in lifecycle.UP
    turn = _turn(wanted, waiting, states)
    home = None if turn is None else wanted[turn].home
    return Step(
        plan,
        spare_place=None if home is None or home.gpu is not None else home,
        begun=spare_up or done > 0 or any(_under_way(states[i], targets[i]) for i in waiting),
        turn=turn if spare_up or (turn is not None and states[turn][0] not in _IDLE) else None,
        done=done,
    )


def surge(workers: Mapping[int, WorkerWanted]) -> bool:
    """Whether a spare can be made for these workers."""
    homes = [want.home for want in workers.values() if want.home is not None]
    return len(homes) == 1 or all(home.gpu is None for home in homes)


_IDLE = lifecycle.UP | {_S.FAILED}
"""States in which a worker would still be untouched by the restart."""


def _done(state: tuple[WorkerState, int], target: int) -> bool:
    return state[1] >= target and state[0] in lifecycle.UP


def _under_way(state: tuple[WorkerState, int], target: int) -> bool:
    return state[1] >= target or state[0] is _S.DRAINING


def _turn(wanted: Mapping[int, WorkerWanted], waiting: list[int], states: States) -> int | None:
    """Who is restarted now: one that is down anyway, else the first, once all are up."""
    down = [i for i in wanted if states[i][0] not in lifecycle.UP]
    if not down:
        return waiting[0]
    absent = [i for i in down if i in waiting]
    return absent[0] if absent else None


def _failure(
    desired: ModelWanted,
    plan: Rolling,
    wanted: Mapping[int, WorkerWanted],
    states: States,
    done: int,
) -> Over | None:
    for i, target in plan.targets.items():
        if i in wanted and wanted[i].epoch < target:
            return Over(done, f"worker {i} was resumed before its restart had begun")
    spare = None if plan.spare is None else desired.workers.get(plan.spare)
    if plan.spare is not None and spare is not None:
        if spare.leaving or not spare.up:
            return Over(done, f"worker {plan.spare} was taken down before it was up")
        if states[plan.spare][0] is _S.FAILED:
            return Over(done, f"worker {plan.spare} does not start", plan.spare)
    for i in wanted:
        state, epoch = states[i]
        if state is _S.FAILED and epoch >= plan.targets.get(i, 0):
            return Over(done, f"worker {i} does not start", i)
    return None


def _end(plan: Rolling, states: States, done: int) -> Step:
    if plan.spare is not None and plan.spare in states:
        return Step(plan, done=done, finished=True)
    return Step(plan, done=done, over=Over(done))
