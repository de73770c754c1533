"""Says once when memory is nearly gone, once when there is enough again, and whenever the kernel
has ended a process for want of it.

A limit that is lowered under a running server cannot be answered: the kernel kills a worker when
one needs a page more. The operator is to read the reason before that. Changes nothing.
"""

from __future__ import annotations

from lbhost.board import HostRow
from lbhost.placement.memory import gib, nearly_gone
from lbhost.supervisor.events import EventLog

_ENOUGH = 2.0
"""Times the least that must be free again before it is told: no chatter at the limit."""


class MemoryWatch:
    """Looks at the host's row each tick."""

    def __init__(self, events: EventLog) -> None:
        self._events = events
        self._low = False
        self._oom_kills = 0

    def look(self, host: HostRow | None) -> None:
        """Tell of a change, if this is one."""
        if host is not None:
            self._look_at_kills(host.oom_kills)
        if host is None or not host.memory_total or host.memory_available is None:
            return
        total, left = host.memory_total, host.memory_available
        words = f"{gib(left)} of {gib(total)} of memory are left"
        if not self._low and nearly_gone(total, left):
            self._low = True
            self._events.add(
                "warning",
                "server",
                f"only {words}: the kernel may kill a worker; see lbhost doctor",
            )
        elif self._low and not nearly_gone(total, left / _ENOUGH):
            self._low = False
            self._events.add("info", "server", f"{words} again")

    def _look_at_kills(self, oom_kills: int) -> None:
        new, self._oom_kills = oom_kills - self._oom_kills, oom_kills
        if new > 0:
            what = "a process" if new == 1 else f"{new} processes"
            text = f"the kernel has ended {what} of this server's control group for want of memory"
            advice = "raise its limit, or use fewer --workers or --slots or a smaller --ctx-size"
            self._events.add("warning", "server", f"{text}: {advice}")
