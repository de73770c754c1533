"""The memory that bodies of requests may take together, from their first byte to the end of intake.

Pure bookkeeping: knows no connection. Small bodies count but are never refused, so that a few
clients with large ones cannot lock out the others.
"""

from __future__ import annotations

BODIES = 32
"""All bodies held at a time may be as large as so many of the largest together."""

SMALL_BYTES = 16 * 1024
"""Bodies up to here are never refused: all connections together cannot hold much of them."""


class Budget:
    """Bytes of request bodies that all connections hold together."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0


class BodyHold:
    """What one request's body takes of it."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.size = 0
        """Bytes of the body that have come, whether released or not."""
        self._held = 0

    def add(self, size: int) -> bool:
        """More of the body has come. False: there is no room for it."""
        self.size += size
        self._held += size
        self._budget.used += size
        return self.size <= SMALL_BYTES or self._budget.used <= self._budget.limit

    def release(self) -> None:
        """Nobody needs it any more. Harmless the second time."""
        self._budget.used -= self._held
        self._held = 0
