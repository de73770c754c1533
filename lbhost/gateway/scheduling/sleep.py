"""A model that sleeps has no workers on purpose: who waits for it has one brought. Pure.

The supervisor says on the board that it sleeps, and goes on saying so until its first worker is
up. It may miss that it is told of a request (a full link): it is told again.
"""

from __future__ import annotations

from collections.abc import Callable

AGAIN_S = 0.25
"""It is told so often as long as somebody waits."""


class Sleep:
    """One model's."""

    def __init__(
        self, asleep: Callable[[], bool] = lambda: False, wake: Callable[[], None] = lambda: None
    ) -> None:
        """`asleep`: what the board says. wake: tells the supervisor that a request has come."""
        self.asleep = asleep
        self._wake = wake
        self._told = -1e9
        self._seen_asleep = -1e9

    def look(self, now: float) -> None:
        """Somebody waits."""
        if self.asleep():
            self._seen_asleep = now
            if now - self._told >= AGAIN_S:
                self._told = now
                self._wake()

    def awake_since(self, queued: float, now: float) -> float:
        """From when on a request that waits since `queued` waits for workers that are awake: what
        waking takes is no wait in the queue."""
        if self.asleep():
            return now
        return max(queued, self._seen_asleep)
