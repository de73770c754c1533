"""The life of a worker: every state, every event, one table.

Pure. Everything that decides a state lies in this file; who applies it is pool.py, the one
writer. What the operator wants (`board.Wanted`) is kept apart and never a reason for a state
to be skipped.
"""

from __future__ import annotations

import enum
from types import MappingProxyType

from lbhost.board import Wanted, WorkerState
from lbhost.errors import LbhostError

_S = WorkerState


class Event(enum.Enum):
    """What can happen to a worker."""

    START = "start"
    """A process is being made for it."""
    READY = "ready"
    """Its process says that it is open for work."""
    HOT = "hot"
    """Its core is at hot_c."""
    COOL = "cool"
    """Its core is back at warm_c, or the worker is needed in spite of the heat."""
    DRAIN = "drain"
    """No new requests; what runs may finish."""
    WITHDRAW = "withdraw"
    """The drain is taken back."""
    STOP = "stop"
    """End the process now (drained, or the time for that is over), or give up starting one."""
    ENDED = "ended"
    """The process is gone, as was asked for."""
    CRASHED = "crashed"
    """The process is gone, nobody asked for that, and the restart budget allows another."""
    GAVE_UP = "gave_up"
    """The process is gone, and the restart budget is spent."""


class LifecycleError(LbhostError):
    """The event cannot happen in this state: a bug of ours, and nothing was changed."""

    def __init__(self, state: WorkerState, event: Event) -> None:
        super().__init__(f"a worker that is {state.name} cannot take {event.name}")
        self.state = state
        self.event = event


TABLE: MappingProxyType[tuple[WorkerState, Event], WorkerState] = MappingProxyType(
    {
        (_S.STOPPED, Event.START): _S.STARTING,
        (_S.BACKOFF, Event.START): _S.STARTING,
        (_S.FAILED, Event.START): _S.STARTING,
        (_S.STARTING, Event.READY): _S.READY,
        (_S.READY, Event.HOT): _S.RESTING,
        (_S.RESTING, Event.COOL): _S.READY,
        (_S.READY, Event.DRAIN): _S.DRAINING,
        (_S.RESTING, Event.DRAIN): _S.DRAINING,
        (_S.DRAINING, Event.WITHDRAW): _S.READY,
        (_S.STARTING, Event.STOP): _S.STOPPING,
        (_S.READY, Event.STOP): _S.STOPPING,
        (_S.RESTING, Event.STOP): _S.STOPPING,
        (_S.DRAINING, Event.STOP): _S.STOPPING,
        (_S.BACKOFF, Event.STOP): _S.STOPPED,
        (_S.FAILED, Event.STOP): _S.STOPPED,
        (_S.STOPPING, Event.ENDED): _S.STOPPED,
        (_S.DRAINING, Event.ENDED): _S.STOPPED,
        (_S.STARTING, Event.CRASHED): _S.BACKOFF,
        (_S.READY, Event.CRASHED): _S.BACKOFF,
        (_S.RESTING, Event.CRASHED): _S.BACKOFF,
        (_S.DRAINING, Event.CRASHED): _S.BACKOFF,
        (_S.STARTING, Event.GAVE_UP): _S.FAILED,
        (_S.READY, Event.GAVE_UP): _S.FAILED,
        (_S.RESTING, Event.GAVE_UP): _S.FAILED,
        (_S.DRAINING, Event.GAVE_UP): _S.FAILED,
    }
)


def apply(state: WorkerState, event: Event) -> WorkerState:
    """The state after an event.

    Raises:
        LifecycleError: the event is not possible in this state.
    """
    try:
        return TABLE[state, event]
    except KeyError:
        raise LifecycleError(state, event) from None


def on_exit(state: WorkerState, wanted: Wanted, *, budget_left: bool) -> Event:
    """Which event the end of a worker's process is.

    A worker that was being drained to stay down is where it should be, however it ended.
    """
    if state is _S.STOPPING or (state is _S.DRAINING and wanted is Wanted.DOWN):
        return Event.ENDED
    return Event.CRASHED if budget_left else Event.GAVE_UP


SERVING = frozenset({_S.READY, _S.RESTING, _S.DRAINING})
"""States in which a worker holds a data link and may be running requests."""

ALIVE = SERVING | {_S.STARTING, _S.STOPPING}
"""States in which a process exists or is being made."""

UP = frozenset({_S.READY, _S.RESTING})
"""States of a worker that is where an operator who wants it up would have it."""
