"""How old a worker's measured figures are: a TTFT of minutes ago is no reading of now. Pure.

The server keeps a worker's last averages for ever. Here is noted when it last produced a token;
figures of an idle worker fade and then become a dash, and a new process begins without any.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from lbhost.status import WorkerStatus

FADES_S = 10.0
GONE_S = 60.0


class Age(enum.Enum):
    """What to make of a figure."""

    FRESH = "fresh"
    FADED = "faded"
    GONE = "gone"


@dataclass(frozen=True)
class _Seen:
    epoch: int
    tokens_out: int
    at_s: float
    """When it last worked, as far as we know."""
    measured: bool
    """Whether this process has produced anything since we know of it."""


class Freshness:
    """Remembers when each worker last worked. Time is passed in (any clock that goes forward)."""

    def __init__(self) -> None:
        self._seen: dict[int, _Seen] = {}

    def note(self, workers: list[WorkerStatus], now_s: float) -> None:
        """Take in a picture; workers that are not in it are forgotten."""
        self._seen = {worker.id: self._next(worker, now_s) for worker in workers}

    def _next(self, worker: WorkerStatus, now_s: float) -> _Seen:
        before = self._seen.get(worker.id)
        if before is None:
            # Nobody knows how old they are: faded at once, and a dash in a minute.
            busy = worker.slots_busy > 0
            return _Seen(worker.epoch, worker.tokens_out, now_s if busy else now_s - FADES_S, True)
        if worker.epoch != before.epoch:
            return _Seen(worker.epoch, worker.tokens_out, now_s, False)
        worked = worker.tokens_out != before.tokens_out
        if worked or (worker.slots_busy and before.measured):
            return _Seen(worker.epoch, worker.tokens_out, now_s, True)
        return before

    def age(self, worker: int, now_s: float) -> Age:
        """What this worker's averages are worth."""
        seen = self._seen.get(worker)
        if seen is None or not seen.measured or now_s - seen.at_s >= GONE_S:
            return Age.GONE
        return Age.FADED if now_s - seen.at_s >= FADES_S else Age.FRESH
