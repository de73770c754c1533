"""Which events a reader wants: of one worker, from a severity on, from a moment on. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from lbhost.status import Event

LEVELS = ("info", "warning", "error")
"""From the least severe to the most."""


@dataclass(frozen=True)
class EventFilter:
    """A reader's wish; None: no limit."""

    worker: int | None = None
    level: str | None = None
    """The least severe of LEVELS that is let through."""
    since: float | None = None
    """Unix time, seconds."""

    def passes(self, event: Event) -> bool:
        """Whether the reader wants this one."""
        if self.worker is not None and event.worker != self.worker:
            return False
        if self.since is not None and event.time < self.since:
            return False
        return self.level is None or _severity(event.level) >= _severity(self.level)


def _severity(level: str) -> int:
    """Place in LEVELS; a level that is not there is taken for the most severe."""
    return LEVELS.index(level) if level in LEVELS else len(LEVELS)
