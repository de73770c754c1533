"""How fast the queue has moved of late, and so how long one has to wait. Pure: no clock.

Time in which nothing waits says nothing of how fast places come free, and does not count.
"""

from __future__ import annotations

from collections import deque

WINDOW_S = 30.0
"""Seconds of waiting that are remembered."""

KEPT = 256
"""Freed places that are remembered at most."""

FORGET_S = 120.0
"""After so long without a queue, the workers may be others: begin again."""

GUESS_WEIGHT = 2.0
"""The guess counts like so many places seen coming free at its speed."""


class Pace:
    """Counts places that came free while somebody waited for one."""

    def __init__(self) -> None:
        self._waiting = False
        self._changed = 0.0
        self._waited = 0.0
        self._freed: deque[float] = deque(maxlen=KEPT)
        """When, on the clock that runs only while something waits."""
        self._since = 0.0
        """From when on, by that clock, every freed place is in `_freed`."""

    def waiting(self, some: bool, now: float) -> None:
        """Whether anything is queued from now on."""
        if self._waiting:
            self._waited += now - self._changed
            self._changed = now
        elif now - self._changed > FORGET_S:
            self._freed.clear()
            self._since = self._waited
        if some != self._waiting:
            self._waiting = some
            self._changed = now

    def freed(self, now: float) -> None:
        """A worker has one more place. Does not count when nothing waits for it."""
        if self._waiting:
            self.waiting(True, now)
            if len(self._freed) == KEPT:
                self._since = self._freed[0]
            self._freed.append(self._waited)

    @property
    def seen(self) -> int:
        """Places that came free while somebody waited, of those that are remembered."""
        return len(self._freed)

    def wait_s(self, places: int, guess_s: float, now: float) -> float:
        """Seconds until so many places have come free.

        Args:
            guess_s: what one place is believed to take as long as little has been seen.
        """
        self.waiting(self._waiting, now)
        horizon = self._waited - WINDOW_S
        while self._freed and self._freed[0] < horizon:
            self._since = self._freed.popleft()
        span = self._waited - max(self._since, horizon)
        return places * (span + GUESS_WEIGHT * guess_s) / (len(self._freed) + GUESS_WEIGHT)
