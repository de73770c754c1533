"""Whether requests may come: workers are there, or were a moment ago and are about to be again."""

from __future__ import annotations

from collections.abc import Callable

from lbhost.gateway.scheduling.sessions import Outlook, Sessions

NOT_READY_GRACE_S = 2.0
"""How long after the last worker went requests are still queued: a replacement takes 0.3 s."""


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
        outlook = self._sessions.outlook(self._clock_ns())
        if outlook is Outlook.OPEN:
            self.seen()
        return outlook

    def seen(self) -> None:
        """There is a worker that may be given requests."""
        self._ready_at = self._clock()

    @property
    def closed(self) -> bool:
        """Whether there is no worker, was none a moment ago, and none is about to come."""
        just_now = self._clock() - self._ready_at < NOT_READY_GRACE_S
        return self.outlook() is Outlook.CLOSED and not just_now

    def hopeless(self, queued: float) -> bool:
        """Whether nobody will come for a job that has waited since then, while it is closed."""
        return self._clock() - queued >= NOT_READY_GRACE_S and not self._sessions.expected()
