"""What has to be done so that what is becomes what is wanted. Pure.

`reconcile` compares one model's wanted workers (desired.py) with a snapshot of what they are,
and gives the next actions: at most one for each worker, each possible in its state by
lifecycle.py's table. pool.py carries them out and asks again until there are none; whatever
cannot be done yet (a fork server that loads, a backoff) is asked for again later.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import msgspec

from lbhost.board import WorkerState
from lbhost.placement.placement import Placement
from lbhost.supervisor import rolling
from lbhost.supervisor.desired import ModelWanted, WorkerWanted

STOP_LIMIT_S = 3.0
"""A worker that was told to stop gets so long before SIGKILL."""

_S = WorkerState


class Seen(msgspec.Struct, frozen=True):
    """What one worker is."""

    state: WorkerState
    epoch: int
    place: Placement
    """Where its process runs, or ran last."""
    asked: bool = False
    """Whether a process of this epoch has been asked for or is there."""
    running: bool = False
    """Whether that process is known by its pid."""
    linked: bool = False
    """Whether the present gateway has its data link."""
    drained: bool = False
    """Whether it has said so in this drain."""
    since_s: float = 0.0
    """CLOCK_MONOTONIC when it came into its state."""
    retry_at_s: float | None = None
    """In BACKOFF: when it is started again."""


class Actual(msgspec.Struct, frozen=True):
    """What one model's workers, and those whom they need, are."""

    workers: Mapping[int, Seen]
    fork_servers: frozenset[int | None]
    """Nodes whose fork server can fork now."""
    gateway: bool
    """Whether the gateway can take links."""
    allowed: tuple[int, ...]
    """CPUs that this server may use, for those that run out their requests without a core."""
    request_limit_s: float
    """As long as any request may take."""


# --- what is to be done -------------------------------------------------------------------


class Start(msgspec.Struct, frozen=True):
    """STOPPED, BACKOFF or FAILED -> STARTING: a new epoch, at this place."""

    worker: int
    place: Placement


class Launch(msgspec.Struct, frozen=True):
    """Ask for the process of this epoch."""

    worker: int
    place: Placement


class Drain(msgspec.Struct, frozen=True):
    """READY or RESTING -> DRAINING."""

    worker: int


class Withdraw(msgspec.Struct, frozen=True):
    """DRAINING -> READY."""

    worker: int


class Stop(msgspec.Struct, frozen=True):
    """End the process now, or stop waiting for another."""

    worker: int
    why: str = ""


class Kill(msgspec.Struct, frozen=True):
    """SIGKILL: it does not stop."""

    worker: int


class Repin(msgspec.Struct, frozen=True):
    """Move a running process to other CPUs."""

    worker: int
    place: Placement


class Connect(msgspec.Struct, frozen=True):
    """A data link between it and the gateway."""

    worker: int


class Forget(msgspec.Struct, frozen=True):
    """It has stopped and its row goes."""

    worker: int


class RollingOver(msgspec.Struct, frozen=True):
    """The rolling restart has ended."""

    how: rolling.Over


Action: TypeAlias = (
    Start | Launch | Drain | Withdraw | Stop | Kill | Repin | Connect | Forget | RollingOver
)


# --- the decision -------------------------------------------------------------------------


def reconcile(desired: ModelWanted, actual: Actual, now_s: float) -> list[Action]:
    """The next actions; none if everything is as wanted, or has to be waited for."""
    states = {i: (seen.state, seen.epoch) for i, seen in actual.workers.items()}
    step = rolling.step(desired, states)
    if step.over is not None:
        return [RollingOver(step.over)]
    actions: list[Action] = []
    # The spare first: it has to be on the core before that core's owner leaves it.
    order = sorted(actual.workers, key=lambda i: (not desired.workers[i].spare, i))
    for worker in order:
        seen = actual.workers[worker]
        want = step.wanted(worker, desired.workers[worker], seen.epoch)
        action = _next(worker, want, seen, actual, now_s)
        if action is not None:
            actions.append(action)
    return actions


def due_s(desired: ModelWanted, actual: Actual) -> float | None:
    """When time alone makes a next action necessary, CLOCK_MONOTONIC; None: never."""
    times = []
    for worker, seen in actual.workers.items():
        if seen.state is _S.BACKOFF and seen.retry_at_s is not None:
            times.append(seen.retry_at_s)
        elif seen.state is _S.DRAINING:
            times.append(_down_by_s(desired.workers[worker], seen, actual))
        elif seen.state is _S.STOPPING:
            times.append(seen.since_s + STOP_LIMIT_S)
    return min(times, default=None)


def _next(
    worker: int, want: WorkerWanted, seen: Seen, actual: Actual, now_s: float
) -> Action | None:
    old = seen.epoch < want.epoch
    match seen.state:
        case _S.STOPPED:
            if want.leaving:
                return Forget(worker)
            return Start(worker, want.home) if want.runs and want.home else None
        case _S.BACKOFF | _S.FAILED:
            return _absent(worker, want, seen, now_s, old=old)
        case _S.STARTING:
            return _starting(worker, want, seen, actual, old=old)
        case _S.READY | _S.RESTING:
            return _serving(worker, want, seen, actual, now_s, old=old)
        case _S.DRAINING:
            return _draining(worker, want, seen, actual, now_s, old=old)
        case _S.STOPPING if now_s >= seen.since_s + STOP_LIMIT_S:
            return Kill(worker)
    return None


def _absent(
    worker: int, want: WorkerWanted, seen: Seen, now_s: float, *, old: bool
) -> Action | None:
    if not want.up or want.leaving:
        return Stop(worker)
    if want.home is None:
        return Stop(worker) if seen.state is _S.BACKOFF else None
    again = seen.retry_at_s is not None and now_s >= seen.retry_at_s
    return Start(worker, want.home) if old or again else None


def _starting(
    worker: int, want: WorkerWanted, seen: Seen, actual: Actual, *, old: bool
) -> Action | None:
    if not want.runs or want.home is None or old:
        return Stop(worker)
    if not seen.asked:
        can = want.home.gpu is not None or want.home.node in actual.fork_servers
        return Launch(worker, want.home) if can else None
    if seen.place.threads != want.home.threads:
        return Stop(worker)
    return _repin(worker, want.home, seen)


def _serving(
    worker: int, want: WorkerWanted, seen: Seen, actual: Actual, now_s: float, *, old: bool
) -> Action | None:
    if not want.runs and want.down_by_s is not None and now_s >= want.down_by_s:
        return Stop(worker)
    if not want.runs or want.home is None or old or seen.place.threads != want.home.threads:
        return Drain(worker)
    moved = _repin(worker, want.home, seen)
    if moved is not None:
        return moved
    return Connect(worker) if actual.gateway and not seen.linked else None


def _draining(
    worker: int, want: WorkerWanted, seen: Seen, actual: Actual, now_s: float, *, old: bool
) -> Action | None:
    stays = want.runs and not old
    if stays and want.home is not None and seen.place.threads == want.home.threads:
        return Withdraw(worker)
    if seen.drained:
        return Stop(worker)
    if now_s >= _down_by_s(want, seen, actual):
        return Stop(worker, "the time to drain is over")
    if want.home is None and not set(seen.place.cpus) <= set(actual.allowed):
        cpus = actual.allowed
        return Repin(worker, msgspec.structs.replace(seen.place, cpus=cpus))
    return Connect(worker) if actual.gateway and not seen.linked else None


def _repin(worker: int, home: Placement, seen: Seen) -> Action | None:
    return Repin(worker, home) if seen.running and seen.place.cpus != home.cpus else None


def _down_by_s(want: WorkerWanted, seen: Seen, actual: Actual) -> float:
    limit = seen.since_s + actual.request_limit_s
    return limit if want.down_by_s is None else want.down_by_s
