"""The event log: the last thousand things that happened, numbered.

Owns the ring and wakes those who wait for more. Never blocks its writer: a reader that is
too slow misses events, and sees that in the numbers.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

from lbhost import log
from lbhost.status import Event

KEPT = 1000
LINE_LIMIT = 500


class EventLog:
    """Ring of Events. One writer, the supervisor; any number of readers by sequence number."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._ring: deque[Event] = deque(maxlen=KEPT)
        self._seq = 0
        self._clock = clock
        self._more = asyncio.Event()
        self.closed = False

    @property
    def last(self) -> int:
        """The newest event's number, 0 before the first."""
        return self._seq

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

    def after(self, seq: int) -> list[Event]:
        """Events that are newer than this number and still kept, oldest first."""
        missing = min(self._seq - seq, len(self._ring))
        return list(self._ring)[-missing:] if missing > 0 else []

    def latest(self, count: int) -> list[Event]:
        """The last so many events, oldest first."""
        return list(self._ring)[-count:] if count > 0 else []

    async def wait(self, seq: int, timeout_s: float) -> None:
        """Return when an event newer than seq is there, at close, or after timeout_s."""
        if self._seq > seq or self.closed:
            return
        try:
            await asyncio.wait_for(self._more.wait(), timeout_s)
        except TimeoutError:
            return

    def close(self) -> None:
        """Nothing more will come: let every reader end."""
        self.closed = True
        self._wake()

    def _wake(self) -> None:
        self._more.set()
        self._more = asyncio.Event()
