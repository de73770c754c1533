"""Numbered lines of which the newest are kept, and those who wait for more.

Owns the ring; what is in it is events.py's and output.py's. Never blocks its writer: a reader that
is too slow misses lines, and sees that in the numbers.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Generic, Protocol, TypeVar

import msgspec

PING_S = 10.0
"""A reader hears so often that we are there."""


class Numbered(Protocol):
    """What stands in a journal."""

    @property
    def seq(self) -> int: ...


T = TypeVar("T", bound=Numbered)


class Journal(Generic[T]):
    """One writer, any number of readers by sequence number."""

    def __init__(self, kept: int) -> None:
        """`kept`: lines, at most."""
        self._ring: deque[T] = deque(maxlen=kept)
        self._seq = 0
        self._more = asyncio.Event()
        self.closed = False

    @property
    def last(self) -> int:
        """The newest line's number, 0 before the first."""
        return self._seq

    def after(self, seq: int) -> list[T]:
        """Lines that are newer than this number and still kept, oldest first."""
        missing = min(self._seq - seq, len(self._ring))
        return list(self._ring)[-missing:] if missing > 0 else []

    def latest(self, count: int) -> list[T]:
        """The last so many lines, oldest first."""
        return list(self._ring)[-count:] if count > 0 else []

    async def wait(self, seq: int, timeout_s: float) -> None:
        """Return when a line newer than seq is there, at close, or after timeout_s."""
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


async def told(
    journal: Journal[T], seq: int, wanted: Callable[[T], bool], *, follow: bool
) -> AsyncIterator[bytes]:
    """Lines after that number as server-sent events; with `follow` until the journal is closed."""
    yield b": lbhost\n\n"
    while True:
        for line in journal.after(seq):
            seq = line.seq
            if wanted(line):
                yield b"id: %d\ndata: %s\n\n" % (seq, msgspec.json.encode(line))
        if journal.closed or not follow:
            return
        await journal.wait(seq, PING_S)
        if journal.last == seq and not journal.closed:
            yield b": ping\n\n"
