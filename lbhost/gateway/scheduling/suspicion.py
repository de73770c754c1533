"""Which request is to blame when workers die under it. Pure.

A request's answer may be what ends a worker: bad numbers, a bug, a decode that never returns. Sent
on from worker to worker it would end them all. The gateway sees that a link has closed, with all
the requests that were in that worker's batch; how the process ended it hears a moment later from
the supervisor. Three rules follow:

- A death counts against a request only if its work may have been the cause: a crash or a hang
  of the process, or a decode that failed, which the worker survives. One that somebody killed or
  stopped says nothing about requests.
- Two deaths that count, and the request is run alone in a worker, or nowhere until it is known
  whether they count: so those who were only beside the culprit clear themselves.
- Two deaths of different processes that count, and one when nobody else was there: it is a query
  of death. A process whose decodes fail and fail ends itself, so that the next one tells whose
  fault it was.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence

import msgspec

DEATHS = 2
"""That count, before a request is treated differently."""

WORD_S = 2.0
"""The supervisor's word comes within milliseconds. Without it for so long (the link was closed
and the process lives on), a death does not count until it comes."""

LATE_S = 30.0
"""After so long it is the word of another end: on a busy box it may take seconds."""

KEPT = 64
"""Processes whose end is remembered, and queries of death."""

REFUSED_S = 600.0
"""A query of death that is sent again within this time is refused unseen."""


class Trust(enum.Enum):
    """Where a request may run."""

    ANYWHERE = "anywhere"
    LATER = "later"
    """Not before it is known how its workers ended."""
    ALONE = "alone"
    """In a worker that has no other request."""
    NOWHERE = "nowhere"
    """It is a query of death."""


class Death(msgspec.Struct):
    """A worker's process that ended while it had a request, or failed to compute it."""

    worker: int
    epoch: int
    alone: bool
    """Whether it had no other."""
    at: float
    counts: bool | None = None
    """Whether the work may have been the cause; None: not known yet."""


def trust(deaths: Sequence[Death], now: float) -> Trust:
    """Where a request with these deaths may run; see the module."""
    counted = [death for death in deaths if death.counts]
    processes = {(death.worker, death.epoch) for death in counted}
    if len(processes) >= DEATHS and any(death.alone for death in counted):
        return Trust.NOWHERE
    open_ = sum(death.counts is None and now - death.at < WORD_S for death in deaths)
    if len(counted) + open_ < DEATHS:
        return Trust.ANYWHERE
    return Trust.LATER if open_ else Trust.ALONE


class Ends:
    """How the last processes ended, as the supervisor said: its word may come before the link's."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], bool] = {}

    def add(self, worker: int, epoch: int, counts: bool) -> None:
        self._known[worker, epoch] = counts
        if len(self._known) > KEPT:
            del self._known[next(iter(self._known))]

    def death(self, worker: int, epoch: int, now: float, *, alone: bool) -> Death:
        """A process has just ended while it had a request."""
        return Death(worker, epoch, alone, now, self._known.get((worker, epoch)))


def settle(deaths: Iterable[Death], worker: int, epoch: int, now: float, counts: bool) -> bool:
    """Enter the supervisor's word. Whether it was waited for.

    What comes much later says how a process ended of which only the link was gone.
    """
    waited = False
    for death in deaths:
        soon = now - death.at < LATE_S
        if (death.worker, death.epoch) == (worker, epoch) and death.counts is None and soon:
            death.counts = counts
            waited = True
    return waited


class Condemned:
    """The fingerprints of queries of death, for a while."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}

    def __bool__(self) -> bool:
        return bool(self._until)

    def add(self, fingerprint: str, now: float) -> None:
        self._until.pop(fingerprint, None)
        self._until[fingerprint] = now + REFUSED_S
        if len(self._until) > KEPT:
            del self._until[next(iter(self._until))]

    def holds(self, fingerprint: str, now: float) -> bool:
        until = self._until.get(fingerprint)
        if until is not None and now >= until:
            del self._until[fingerprint]
            until = None
        return until is not None
