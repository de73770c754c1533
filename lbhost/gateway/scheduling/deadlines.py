"""One timer per job, at most. Owns the timers; what a deadline means is the dispatcher's matter."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from lbhost.gateway.scheduling.job import Job


class Deadlines:
    """Calls back with a job whose time is over."""

    def __init__(self, on_over: Callable[[Job], None], clock: Callable[[], float]) -> None:
        self._on_over = on_over
        self._clock = clock
        self._timers: dict[int, asyncio.TimerHandle] = {}

    def set(self, job: Job, at: float) -> None:
        """The job's deadline, by the clock given; replaces the one it had."""
        self.clear(job)
        self._timers[job.number] = asyncio.get_running_loop().call_later(
            max(0.0, at - self._clock()), self._on_over, job
        )

    def clear(self, job: Job) -> None:
        timer = self._timers.pop(job.number, None)
        if timer is not None:
            timer.cancel()

    def close(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
