"""Simulated time for code that is written for asyncio: a loop whose clock jumps to the next timer.

Owns the time. Nothing here waits for anything real.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable

START_S = 1000.0
"""When a simulation begins; not 0, so that what happened long ago has a time too."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """Runs callbacks in the order of their times, without the time between them."""

    def __init__(self) -> None:
        self.now = START_S
        super().__init__(_Jump(self._pass))

    def time(self) -> float:
        """Simulated seconds."""
        return self.now

    def time_ns(self) -> int:
        """The same in nanoseconds."""
        return int(self.now * 1e9)

    def _pass(self, seconds: float) -> None:
        self.now += seconds


class _Jump(selectors.SelectSelector):
    """Where a loop sleeps until something happens, this one lets the time have passed."""

    def __init__(self, pass_s: Callable[[float], None]) -> None:
        super().__init__()
        self._pass_s = pass_s

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Raises RuntimeError when there is nothing to come: it would sleep for ever."""
        if timeout is None:
            raise RuntimeError("the simulation stands still: no timer is set")
        if timeout > 0:
            self._pass_s(timeout)
        return []
