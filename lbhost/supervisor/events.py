"""The event log: the last thousand things that happened, numbered."""

from __future__ import annotations

import time
from collections.abc import Callable

from lbhost import log
from lbhost.status import Event
from lbhost.supervisor.journal import Journal

KEPT = 1000
LINE_LIMIT = 500


class EventLog(Journal[Event]):
    """The supervisor writes it, the admin API reads it."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        super().__init__(KEPT)
        self._clock = clock

    def add(self, level: str, kind: str, message: str, worker: int | None = None) -> None:
        """Append an event, and write it to the log."""
        self._seq += 1
        line = " ".join(message.split())[:LINE_LIMIT]
        self._ring.append(
            Event(
                seq=self._seq,
                time=self._clock(),
                level=level,
                kind=kind,
                worker=worker,
                message=line,
            )
        )
        fields = {"kind": kind} if worker is None else {"kind": kind, "worker": worker}
        getattr(log.get(), level)(line, **fields)
        self._wake()
