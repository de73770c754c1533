"""What is looked at again and again while requests run: lent cores, and who had better move.

Owns the timer; what to do is the lender's and the mover's matter.
"""

from __future__ import annotations

import asyncio

from lbhost.gateway.scheduling.lender import LOOK_S, Lender
from lbhost.gateway.scheduling.mover import Mover
from lbhost.gateway.scheduling.readings import FRESH_NS
from lbhost.gateway.scheduling.sessions import Sessions


class Upkeep:
    """See the module."""

    def __init__(self, sessions: Sessions, lender: Lender, mover: Mover) -> None:
        self._sessions = sessions
        self._lender = lender
        self._mover = mover
        self._timer: asyncio.TimerHandle | None = None

    @property
    def rests(self) -> bool:
        """Whether nothing runs, so that there is nothing to look at."""
        return self._timer is None

    def settle_cores(self) -> None:
        """Ask back what is about to be needed, lend what is not; again as long as anything runs."""
        self._lender.settle()
        self.close()
        if self._sessions.in_flight:
            self._timer = asyncio.get_running_loop().call_later(LOOK_S, self._look_again)

    def worker_leaves(self) -> None:
        """A worker's state has just changed so that its requests go: the board says so soon."""
        asyncio.get_running_loop().call_later(FRESH_NS / 1e9, self._mover.look)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_again(self) -> None:
        self.settle_cores()
        self._mover.look()
