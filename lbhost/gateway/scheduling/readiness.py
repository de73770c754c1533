"""Whether requests may come: workers are there, or were a moment ago and are about to be again."""

from __future__ import annotations

import enum
from collections.abc import Callable

from lbhost import board
from lbhost.gateway.scheduling.sessions import Sessions

LOOK_AGAIN_S = 0.1
"""Who has just seen a worker need not look for one: several times a request it is asked."""

NOT_READY_GRACE_S = 2.0
"""How long after the last worker went requests are still queued: a replacement takes 0.3 s."""


class Outlook(enum.Enum):
    """What a request that arrives now may hope for."""

    OPEN = "open"
    """Some worker takes requests."""
    SOON = "soon"
    """None does, but one is about to: it drains, rests, or its link is on its way; or the model
    sleeps, and a request wakes it."""
    CLOSED = "closed"
    """None is expected any moment: it starts, backs off, failed, or nobody wants one."""


_ABOUT_TO = {board.WorkerState.READY, board.WorkerState.RESTING, board.WorkerState.DRAINING}


class Readiness:
    """See the module."""

    def __init__(
        self, sessions: Sessions, clock: Callable[[], float], clock_ns: Callable[[], int]
    ) -> None:
        self._sessions = sessions
        self._clock = clock
        self._clock_ns = clock_ns
        self._ready_at = -1e9

    def outlook(self) -> Outlook:
        """By the board, now."""
        sessions = self._sessions
        if sessions.any_usable(self._clock_ns()):
            self.seen()
            return Outlook.OPEN
        if sessions.sleep.asleep():
            return Outlook.SOON
        states = [reading.identity.state for _, reading in sessions.readings.present()]
        return Outlook.CLOSED if _ABOUT_TO.isdisjoint(states) else Outlook.SOON

    def seen(self) -> None:
        """There is a worker that may be given requests."""
        self._ready_at = self._clock()

    @property
    def closed(self) -> bool:
        """Whether there is no worker, was none a moment ago, and none is about to come."""
        seen_s = self._clock() - self._ready_at
        if seen_s < LOOK_AGAIN_S:
            return False
        return self.outlook() is Outlook.CLOSED and seen_s >= NOT_READY_GRACE_S

    def hopeless(self, queued: float) -> bool:
        """Whether nobody will come for a job that has waited since then, while it is closed."""
        return self._clock() - queued >= NOT_READY_GRACE_S and not self._expected()

    def _expected(self) -> bool:
        """Whether any worker may still come up without the operator."""
        return self._sessions.sleep.asleep() or any(
            reading.identity.wanted is board.Wanted.UP
            and reading.identity.state is not board.WorkerState.FAILED
            for _, reading in self._sessions.readings.present()
        )
