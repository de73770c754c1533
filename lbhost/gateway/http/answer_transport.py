"""What an answer is written to, and what becomes of a client that does not read it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

WRITE_TIMEOUT_S = 30.0
"""Within this a client that the server waits for must take some of what it has not read, or its
connection is dropped."""

LEAST_READ_BYTES = 16 * 1024
"""So much of it, or all: whoever reads slower only holds a place."""


class AnswerTransport(asyncio.Transport):
    """Closes the connection, unless that is to linger first.

    uvicorn closes at once where the client asked for it: an upload's refusal would be lost.
    """

    def __init__(self, transport: asyncio.Transport, lingers: Callable[[], bool]) -> None:
        super().__init__()
        self.write = transport.write  # type: ignore[method-assign]
        self.is_closing = transport.is_closing  # type: ignore[method-assign]
        self._close = transport.close
        self._lingers = lingers

    def close(self) -> None:
        if not self._lingers():
            self._close()


class ReadingWatch:
    """Drops a connection whose client does not read, or hardly."""

    def __init__(self, loop: asyncio.AbstractEventLoop, transport: asyncio.Transport) -> None:
        self._loop = loop
        self._transport = transport
        self._timer: asyncio.TimerHandle | None = None
        self._unread = 0
        """Bytes that waited for the client when its time to read began."""

    def begin(self) -> None:
        """The client has not read for so long that nothing more is written."""
        if self._timer is None:
            self._await_reading()

    def end(self) -> None:
        """It has read what was written, or has gone."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _await_reading(self) -> None:
        self._unread = self._transport.get_write_buffer_size()
        self._timer = self._loop.call_later(WRITE_TIMEOUT_S, self.look)

    def look(self) -> None:
        """Its time is over: has it read enough to get more of it?"""
        self._timer = None
        if self._unread - self._transport.get_write_buffer_size() < LEAST_READ_BYTES:
            self._transport.abort()
        else:
            self._await_reading()
