"""What signals ask of the server: to stop, or to do something that takes a while.

Handlers only note; the supervisor's loop acts. SIGHUP asks for a reload, unless it says that our
terminal has gone; SIGUSR2 for an upgrade.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable

from lbhost.linux import has_terminal

SAME_STOP_S = 1.0
"""SIGTERMs and SIGHUPs so soon after the first signal are the same request to stop."""


class Signals:
    """See the module."""

    def __init__(self, wake: Callable[[], None]) -> None:
        """`wake` is called when one asks to stop."""
        self.stops: list[int] = []
        self._wake = wake
        self._stop_asked_s = 0.0
        self._had_terminal = has_terminal()
        self._orders: list[int] = []
        self._more = asyncio.Event()

    def take(self, number: int) -> None:
        """One has come."""
        hung_up = self._had_terminal and not has_terminal()
        if number == signal.SIGUSR2 or (number == signal.SIGHUP and not hung_up):
            if number not in self._orders:  # asked for twice before it was begun is done once
                self._orders.append(number)
            self._more.set()
        else:
            self.stop(number)

    def stop(self, number: int) -> None:
        """Note it, and wake the loop.

        A second one ends the waiting, but not one that belongs to the first: service managers
        and scripts send SIGTERM to the process and then to its group, or SIGHUP after it
        (systemd's SendSIGHUP=); a closed terminal's SIGHUP comes from the kernel and from the
        shell. Only a person presses Ctrl-C twice.
        """
        now = time.monotonic()
        if number != signal.SIGINT and self.stops and now - self._stop_asked_s < SAME_STOP_S:
            return
        if not self.stops:
            self._stop_asked_s = now
        self.stops.append(number)
        self._wake()

    async def next_order(self) -> int:
        """The oldest reload or upgrade that was asked for; waits for one."""
        while not self._orders:
            self._more.clear()
            await self._more.wait()
        return self._orders.pop(0)
