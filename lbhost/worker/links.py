"""A worker's data links: frames in, frames out, never blocking.

Owns the sockets that the supervisor handed over. Knows nothing of what the frames mean to
the engine.
"""

from __future__ import annotations

import socket
from collections import deque

from lbhost import wire
from lbhost.errors import WireError

MAX_BACKLOG = 64 * 1024 * 1024
"""Bytes that may wait for a gateway which does not read; then its link is dropped."""

_READ = 256 * 1024


class DataLink:
    """One stream to a gateway. `closed` once it is of no use any more."""

    def __init__(self, number: int, connection: socket.socket) -> None:
        self.number = number
        connection.setblocking(False)
        self._socket = connection
        self._frames = wire.Frames()
        self._backlog: deque[memoryview] = deque()
        self._backlog_bytes = 0
        self.closed = False

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def backlogged(self) -> bool:
        """Whether bytes wait for the gateway to read."""
        return bool(self._backlog)

    def receive(self) -> list[wire.ToWorker]:
        """The messages that are there now. Sets `closed` at end of file or on a bad frame."""
        messages: list[wire.ToWorker] = []
        try:
            while True:
                data = self._socket.recv(_READ)
                if not data:
                    self.closed = True
                    break
                messages.extend(wire.decode_to_worker(body) for body in self._frames.feed(data))
                if len(data) < _READ:
                    break
        except BlockingIOError:
            return messages  # that was all
        except (ConnectionError, WireError):
            self.closed = True
        return messages

    def send(self, frame: bytes) -> None:
        """Send now what the socket takes, keep the rest for `flush`."""
        self._backlog.append(memoryview(frame))
        self._backlog_bytes += len(frame)
        self.flush()
        if self._backlog_bytes > MAX_BACKLOG:
            self.closed = True

    def flush(self) -> None:
        """Send what is waiting, as far as the socket takes it."""
        while self._backlog and not self.closed:
            try:
                sent = self._socket.send(self._backlog[0], socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return
            except ConnectionError:
                self.closed = True
                return
            self._backlog_bytes -= sent
            rest = self._backlog.popleft()[sent:]
            if rest:
                self._backlog.appendleft(rest)

    def close(self) -> None:
        """Close the socket."""
        self.closed = True
        self._socket.close()
