"""Fairness between clients that want more than there is. Pure: no clock, no queue.

The order is that of a virtual token counter (Sheng et al., "Fairness in Serving Large Language
Models", arXiv 2401.00588): who has had the least goes next. A counter is in whatever unit its
charges are, here in seconds of a worker. It is lifted when its client comes back, so that nobody
saves up for a burst by staying away: between two clients that both always have something waiting,
what they have had differs by no more than a bound that does not grow with time: twice the larger
of one prompt's cost and of the output of all that runs at once.

How many places of a queue one client may take follows switches' shared buffers ("dynamic
thresholds", Choudhury and Hahne 1998): so many times what is free, so that some always is.
"""

from __future__ import annotations

import math

OF_FREE = 3
"""One client alone may fill three quarters of a queue, two together six sevenths."""


MOST_CLIENTS = 4096
"""That are remembered, beside those with something waiting."""


class VirtualTokens:
    """What each client has had."""

    def __init__(self) -> None:
        self._had: dict[str, float] = {}
        self._waiting: dict[str, int] = {}
        self._last = ""
        """The client that left the queue last."""

    def had(self, client: str) -> float:
        """What it has had, beside the others'."""
        return self._had.get(client, 0.0)

    def waiting(self, client: str) -> int:
        """How many of its requests wait."""
        return self._waiting.get(client, 0)

    def joins(self, client: str) -> None:
        """One of its requests waits from now on."""
        if client not in self._waiting:
            floor = min(map(self.had, self._waiting), default=self.had(self._last))
            self._forget()
            self._had[client] = max(self.had(client), floor)
        self._waiting[client] = self.waiting(client) + 1

    def leaves(self, client: str) -> None:
        """One of its requests does not wait any more, for whatever reason."""
        left = self._waiting[client] - 1
        if left:
            self._waiting[client] = left
            return
        del self._waiting[client]
        self._last = client

    def charge(self, client: str, cost: float) -> None:
        """It has got something. `cost` is divided by the client's weight already."""
        self._had[client] = self.had(client) + cost

    def _forget(self) -> None:
        """Keys come and go with their file: what those had who are not here is little use."""
        if len(self._had) >= MOST_CLIENTS:
            here = {*self._waiting, self._last}
            self._had = {name: had for name, had in self._had.items() if name in here}


def most_at_once(places: int) -> int:
    """How many requests one client may have wait in an empty queue."""
    return math.ceil(OF_FREE * places / (OF_FREE + 1))


def may_wait(own: float, everybodys: float, places: float) -> bool:
    """Whether one more of a client's requests may wait, of which `own` do already. Or tokens."""
    return own < OF_FREE * (places - everybodys)
